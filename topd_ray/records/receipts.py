"""What the driver learns from a call: plain counts, while the payload stays in the
object store.
"""

import time
from dataclasses import dataclass

from topd_ray.messages import LossSums


@dataclass(frozen=True, slots=True)
class Span:
    """When an actor worked on a call, by its own clock; seconds since the epoch."""

    began_s: float
    ended_s: float

    @classmethod
    def since(cls, began_s: float) -> "Span":
        """From a reading of `time.time()` until now."""
        return cls(began_s, time.time())

    @property
    def busy_s(self) -> float:
        """Its length."""
        return self.ended_s - self.began_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutReceipt:
    """One chunk of finished rollouts."""

    rollout_ids: tuple[str, ...]
    policy_version: int
    num_tokens: int
    """Response tokens of the chunk."""
    num_tokens_each: tuple[int, ...]
    """Response tokens of each rollout, in the order of `rollout_ids`."""
    num_truncated: int
    entropy_sum: float
    """-log p of every sampled token, in nats: its mean estimates the policy's
    entropy.
    """
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteReceipt:
    """One chunk rewritten by the teacher and filtered by outcome."""

    dropped: tuple[tuple[str, str], ...]
    """Rollouts that are not trained on, each with the reason."""
    num_tokens: int
    """Teacher tokens decoded."""
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReceipt:
    """One chunk scored and searched for candidates."""

    num_tokens: int
    num_candidates: int
    loss_sum: float
    """Of the candidate loss over all response tokens, nats."""
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinueReceipt:
    """The teacher's continuations of one chunk's candidates."""

    num_tokens: int
    """Teacher tokens decoded."""
    num_prefix_tokens: int
    num_cached_tokens: int
    """Prefix tokens that the engine had in its cache."""
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class ResampleReceipt:
    """The student's fresh continuations of one chunk's candidates."""

    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReceipt:
    """Transport between the continuations of one chunk."""

    distances: tuple[float, ...]
    """D_OT of every candidate, in order; nan where a cost was not finite."""
    threshold_distances: tuple[float, ...]
    """D_OT of the windows that the verdict's threshold is a quantile of (D7): the
    candidates, or the low-loss controls; nan where a cost was not finite.
    """
    num_unconverged: int
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnReceipt:
    """One chunk packed and accumulated by one rank."""

    sums: LossSums
    num_divergent: int
    """Divergent windows of the whole chunk (every rank judges the same)."""
    span: Span
