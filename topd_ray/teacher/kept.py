"""States of rollouts that the teacher has read before their end.

Axes: N response tokens, D width of the teacher.
"""

import threading
from dataclasses import dataclass, field

import numpy as np

from topd_ray.messages import Floats, HiddenStates, Ints, PartialRollout, Rollout


@dataclass(slots=True)
class ReadSoFar:
    """What the teacher has read of one rollout: row n is about response token n."""

    policy_version: int
    response_ids_N: Ints
    states: list[HiddenStates] = field(default_factory=list)
    """The states that predict the tokens, in pieces of (n, D)."""
    logq_N: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    entropy_N: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def num_read(self) -> int:
        """How many tokens were read."""
        return len(self.response_ids_N)


class KeptReadings:
    """Readings by rollout. Only a cache: what is not there is read again.

    Several threads may use it, each for other rollouts.
    """

    def __init__(self, *, max_staleness: int) -> None:
        """`max_staleness`: policy versions between the newest and the oldest kept."""
        self._max_staleness = max_staleness
        self._kept: dict[str, ReadSoFar] = {}
        self._lock = threading.Lock()

    def of(self, rollout: Rollout | PartialRollout) -> ReadSoFar:
        """Return what was read of the same tokens; empty where it was nothing."""
        kept = self._kept.get(rollout.rollout_id)
        response_ids_N = rollout.response_ids_N
        if kept is not None and kept.policy_version == rollout.policy_version:
            common = min(kept.num_read, len(response_ids_N))
            if np.array_equal(kept.response_ids_N[:common], response_ids_N[:common]):
                return kept
        return ReadSoFar(rollout.policy_version, response_ids_N[:0])

    def keep(self, rollout_id: str, reading: ReadSoFar) -> None:
        """Keep a reading; drop those of rollouts too old to be trained on."""
        oldest = reading.policy_version - self._max_staleness
        with self._lock:
            self._kept[rollout_id] = reading
            for name in [n for n, r in self._kept.items() if r.policy_version < oldest]:
                del self._kept[name]

    def drop(self, rollout_id: str) -> None:
        """Forget one rollout; the others may still be decoded."""
        with self._lock:
            self._kept.pop(rollout_id, None)

    def clear(self) -> None:
        """Forget all: the teacher has new weights."""
        with self._lock:
            self._kept.clear()


__all__ = ["KeptReadings", "ReadSoFar"]
