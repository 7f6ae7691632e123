"""What the driver learns from a call: plain counts and a time span.

The payload of a call stays in the object store; its receipt is all that the driver
fetches. `StepReceipts` holds all receipts of one optimizer step.
"""

import time
from dataclasses import dataclass, field

from topd_ray.messages import LossSums
from topd_ray.records.timeline import Work


@dataclass(frozen=True, slots=True)
class Span:
    """When an actor worked on a call, in seconds of a monotonic clock.

    An actor reads its own clock; its handle shifts the span to the driver's. A wall
    clock would make durations wrong whenever it is set.
    """

    began_s: float
    ended_s: float

    @classmethod
    def since(cls, began_s: float) -> "Span":
        """Return the span from a reading of `time.monotonic()` until now."""
        return cls(began_s, time.monotonic())

    @property
    def busy_s(self) -> float:
        """Length of the span."""
        return self.ended_s - self.began_s

    def shifted(self, by_s: float) -> "Span":
        """Return the same span by a clock that is ahead by `by_s` seconds."""
        return Span(self.began_s + by_s, self.ended_s + by_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What every receipt holds."""

    span: Span
    num_tokens: int = 0
    """Tokens that the actor sampled, scored, decoded or trained in this call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutReceipt(Receipt):
    """One chunk of finished rollouts; `num_tokens` counts response tokens."""

    rollout_ids: tuple[str, ...]
    policy_version: int
    num_truncated: int
    entropy_sum: float
    """Sum of -log p over the sampled tokens, nats; its mean estimates the entropy."""
    num_overshot: int = 0
    """Tokens decoded behind a fork before the engine heard of it; in no rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialReceipt(Receipt):
    """Beginnings of rollouts, sent while the engine decodes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReceipt(Receipt):
    """Beginnings of rollouts that the teacher read."""

    forks: tuple[tuple[str, int], ...]
    """Rollouts whose fork was found, each with its position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteReceipt(Receipt):
    """One chunk rewritten by the teacher; `num_tokens` counts decoded tokens."""

    dropped: tuple[tuple[str, str], ...]
    """Rollouts that are not trained on, each with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReceipt(Receipt):
    """One chunk scored and searched for candidates; `num_tokens` of the responses."""

    num_sequence_tokens: tuple[int, ...]
    """Prompt and response tokens of each rollout; ranks are dealt by them."""
    num_candidates: int
    loss_sum: float
    """Sum of the candidate loss (D1) over all response tokens, nats."""
    threshold_values: tuple[float, ...] = ()
    """Surprises that the first step's threshold is a quantile of, with
    `takeover.verdict: surprise`.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinueReceipt(Receipt):
    """The teacher's windows of one chunk; `num_tokens` counts decoded tokens."""

    num_prefix_tokens: int
    num_cached_tokens: int
    """Prefix tokens that the engine had in its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeoverReceipt(Receipt):
    """The teacher's takeovers of one chunk; `num_tokens` counts decoded tokens."""

    dropped: tuple[tuple[str, str], ...]
    """Rollouts that are not trained on, each with the reason."""
    num_sequence_tokens: tuple[int, ...]
    """Prompt and trained response tokens of each rollout that is kept."""
    num_taken_over: int
    """Rollouts with a fork, dropped ones too."""
    num_own: int
    """Tokens before the forks of these rollouts."""
    num_judged: int
    """Taken-over rollouts with a known answer."""
    num_right: int
    """How many are right with the teacher's continuation."""
    num_judged_before: int
    """Those of them that the student had answered before: it was not stopped."""
    num_right_before: int
    """How many of these were right."""
    num_prefix_tokens: int
    num_cached_tokens: int
    """Prefix tokens that the engine had in its cache."""
    judged_values: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """With `takeover.verdict: surprise`: surprises up to its fork, by rollout; later
    thresholds are a quantile of them.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ResampleReceipt(Receipt):
    """The student's fresh windows of one chunk (D3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReceipt(Receipt):
    """Transport between the windows of one chunk."""

    distances: tuple[float, ...]
    """D_OT of every candidate whose transport converged, in order."""
    threshold_distances: tuple[float, ...]
    """The same for the group that the threshold is a quantile of (D7)."""
    num_windows: int
    """Windows of all groups."""
    num_unconverged: int
    """Windows whose transport did not converge: no verdict, no distance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnReceipt(Receipt):
    """One share packed and accumulated by one rank; `num_tokens` were trained."""

    sums: LossSums
    num_divergent: int
    """Divergent windows of the share."""


@dataclass(frozen=True, slots=True)
class LearnedRound:
    """One call of all learner ranks."""

    rollout_ids: tuple[tuple[str, ...], ...]
    """Rollouts of each rank's share."""
    receipts: list[LearnReceipt]
    """One a rank."""


@dataclass(slots=True)
class StepReceipts:
    """Receipts of one step, in the order in which the learner takes its chunks."""

    rollouts: list[RolloutReceipt] = field(default_factory=list)
    rewrites: list[RewriteReceipt] = field(default_factory=list)
    scores: list[ScoreReceipt] = field(default_factory=list)
    continued: list[ContinueReceipt] = field(default_factory=list)
    probes: list[ProbeReceipt] = field(default_factory=list)
    reads: list[ReadReceipt] = field(default_factory=list)
    takeovers: list[TakeoverReceipt] = field(default_factory=list)
    rounds: list[LearnedRound] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    """Every call of every actor."""
    complaints: list[str] = field(default_factory=list)
    """Why the update was skipped; empty where it was made."""

    @property
    def learned(self) -> list[LearnReceipt]:
        """Receipts of all ranks and rounds."""
        receipts = []
        for learned_round in self.rounds:
            receipts += learned_round.receipts
        return receipts
