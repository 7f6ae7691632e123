"""A fork: the student's continuations of one prefix, with both models' views."""

from dataclasses import dataclass

METHODS = {"opd": "OPD", "topd": "TOPD"}
"""`run.method` of the updates -> the method's name in figures and tables."""

# Pairs, not a dict: two ids may have the same text.
RankedTokens = tuple[tuple[str, float], ...]
"""The most likely tokens with their probabilities, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseStep:
    """One position of a continuation.

    Both probabilities are those of `token`, given all tokens before it.

    Example:
        >>> CaseStep(token="3", student=(("3", 0.7), ("4", 0.2)),
        ...          teacher=(("4", 0.9), ("3", 0.1)), p_student=0.7, p_teacher=0.1)
    """

    token: str
    """The token that the student decoded here."""
    student: RankedTokens
    teacher: RankedTokens
    p_student: float
    p_teacher: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseState:
    """The student's greedy continuation after a number of updates."""

    method: str
    """`before`, `OPD` or `TOPD`."""
    updates: int
    steps: tuple[CaseStep, ...]

    @property
    def name(self) -> str:
        """Method and number of updates, as shown in text and figures."""
        return "before" if self.updates == 0 else f"{self.method} {self.updates}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fork and the continuations from it, before and after every update."""

    prompt: str
    prefix: str
    """The student's response up to the fork."""
    own: tuple[str, ...]
    """The rollout's tokens from the fork on."""
    teacher: tuple[str, ...]
    """The teacher's tokens from the fork on."""
    d_ot: float
    """D_OT between the rollout's window and the teacher's continuation."""
    loss: float
    """Token loss at the fork, in nats."""
    states: tuple[CaseState, ...]
    """The state before any update, then those of OPD, then those of TOPD."""


__all__ = ["METHODS", "Case", "CaseState", "CaseStep", "RankedTokens"]
