"""Finished rollouts in the order of their requests, chunk by chunk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from topd_ray.messages import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRollouts:
    """One chunk."""

    rollouts: list[Rollout]
    num_overshot: int
    """Tokens that were decoded behind the cuts of these rollouts."""


class RequestOrder:
    """Holds rollouts back until all that were asked for before them have ended."""

    def __init__(self, rollout_ids: Sequence[str], chunk_size: int) -> None:
        """`rollout_ids`: all rollouts that are wanted; others are dropped."""
        self._chunks = [
            rollout_ids[start : start + chunk_size]
            for start in range(0, len(rollout_ids), chunk_size)
        ]
        self._wanted = frozenset(rollout_ids)
        self._finished: dict[str, tuple[Rollout, int]] = {}

    def add(self, rollout: Rollout, num_overshot: int) -> None:
        """Take a rollout that has ended, and the tokens decoded behind its cut."""
        if rollout.rollout_id in self._wanted:
            self._finished[rollout.rollout_id] = (rollout, num_overshot)

    def chunks(self) -> Iterator[FinishedRollouts]:
        """Yield the next chunks that are complete."""
        while self._chunks and all(name in self._finished for name in self._chunks[0]):
            ended = [self._finished.pop(name) for name in self._chunks.pop(0)]
            yield FinishedRollouts(
                rollouts=[rollout for rollout, _ in ended],
                num_overshot=sum(num_overshot for _, num_overshot in ended),
            )


__all__ = ["FinishedRollouts", "RequestOrder"]
