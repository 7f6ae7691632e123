"""Where every rollout is. A pure state machine: no Ray, no clock.

    dispatched -> rolled_out (-> rewritten) -> scored (-> probed) (-> taken_over)
        -> consumed; or, from any of them, dropped for a reason

Each rollout is consumed exactly once or dropped for a named reason; `close_step` proves
it. The rollouts of a step that is abandoned are taken back as if never dispatched.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import TypedDict

from topd_ray.errors import TopdError


class Stage(IntEnum):
    """How far a rollout has come."""

    DISPATCHED = 0
    ROLLED_OUT = 1
    REWRITTEN = 2
    SCORED = 3
    PROBED = 4
    TAKEN_OVER = 5
    CONSUMED = 6


class LedgerState(TypedDict):
    """What a checkpoint stores of a ledger."""

    num_dispatched: int
    num_consumed: int
    dropped: dict[str, int]


class Ledger:
    """Rollouts of the open steps by stage, and the totals of the run."""

    def __init__(self) -> None:
        self._open: dict[str, Stage] = {}
        # of the open steps: why each was dropped, None for a consumed one
        self._closed: dict[str, str | None] = {}
        self.num_dispatched = 0
        self.num_consumed = 0
        self.dropped: Counter[str] = Counter()

    def dispatch(self, rollout_ids: Iterable[str]) -> None:
        """Open the rollouts of a step. Raises TopdError for a name used before."""
        for name in rollout_ids:
            if name in self._open or name in self._closed:
                raise TopdError(f"ledger: rollout {name} was dispatched twice")
            self._open[name] = Stage.DISPATCHED
            self.num_dispatched += 1

    def advance(self, rollout_ids: Iterable[str], stage: Stage) -> None:
        """Move rollouts on to `stage`. Raises TopdError for one that would not
        advance.
        """
        for name in rollout_ids:
            was = self._stage(name)
            if stage <= was:
                raise TopdError(
                    f"ledger: rollout {name} is {was.name}, cannot become {stage.name}"
                )
            self._open[name] = stage
            if stage is Stage.CONSUMED:
                self._close(name, None)
                self.num_consumed += 1

    def drop(self, rollout_ids: Iterable[str], *, reason: str) -> None:
        """Take rollouts out for a reason that is counted."""
        for name in rollout_ids:
            self._stage(name)
            self._close(name, reason)
            self.dropped[reason] += 1

    def take_back(self, rollout_ids: Iterable[str]) -> None:
        """Forget the rollouts of an open step that is abandoned, wherever they are."""
        for name in rollout_ids:
            if name in self._open:
                del self._open[name]
            elif name in self._closed:
                self._uncount(self._closed.pop(name))
            else:
                raise TopdError(f"ledger: rollout {name} is of no open step")
            self.num_dispatched -= 1

    def waiting(self) -> dict[str, Stage]:
        """Return the open rollouts and where each is."""
        return dict(self._open)

    def close_step(self, rollout_ids: Iterable[str]) -> None:
        """End the step of these rollouts. Raises TopdError for one that is still
        open.
        """
        names = list(rollout_ids)
        waiting = [name for name in names if name in self._open]
        if waiting:
            first = [
                f"{name} ({self._open[name].name})" for name in sorted(waiting)[:5]
            ]
            raise TopdError(f"ledger: {len(waiting)} rollouts unaccounted for: {first}")
        # names are unique by their position in the run: no later step can repeat one
        for name in names:
            self._closed.pop(name, None)
        accounted = self.num_consumed + self.dropped.total() + len(self._open)
        if self.num_dispatched != accounted:
            raise TopdError(
                f"ledger: dispatched {self.num_dispatched} != consumed"
                f" {self.num_consumed} + dropped {self.dropped.total()} + open"
                f" {len(self._open)}"
            )

    def state(self) -> LedgerState:
        """Return what a checkpoint stores. Raises TopdError while a rollout is open."""
        if self._open:
            raise TopdError("ledger: a checkpoint is taken when no rollout is open")
        return {
            "num_dispatched": self.num_dispatched,
            "num_consumed": self.num_consumed,
            "dropped": dict(self.dropped),
        }

    @classmethod
    def restored(cls, state: Mapping[str, object]) -> "Ledger":
        """Return the ledger that `state` came from. Raises for values of other
        kinds.
        """
        ledger = cls()
        ledger.num_dispatched = int(str(state["num_dispatched"]))
        ledger.num_consumed = int(str(state["num_consumed"]))
        dropped = state["dropped"]
        if not isinstance(dropped, Mapping):
            raise TypeError(f"dropped: {dropped!r}")
        ledger.dropped = Counter({str(k): int(v) for k, v in dropped.items()})
        return ledger

    def _stage(self, name: str) -> Stage:
        if name not in self._open:
            known = "already closed" if name in self._closed else "never dispatched"
            raise TopdError(f"ledger: rollout {name} is {known}")
        return self._open[name]

    def _close(self, name: str, reason: str | None) -> None:
        del self._open[name]
        self._closed[name] = reason

    def _uncount(self, reason: str | None) -> None:
        if reason is None:
            self.num_consumed -= 1
        else:
            self.dropped[reason] -= 1
