"""Where every rollout is. A pure state machine: no Ray, no clock.

    dispatched -> rolled_out -> (rewritten ->) scored -> (probed ->) consumed
         \\____________\\_____________\\___________\\_________\\____> dropped, for a
         named reason

Each rollout is consumed exactly once or dropped with a reason; `close_step` proves it.
"""

from collections import Counter
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

from topd_ray.errors import TopdError


class Stage(IntEnum):
    """How far a rollout has come."""

    DISPATCHED = 0
    ROLLED_OUT = 1
    REWRITTEN = 2
    SCORED = 3
    PROBED = 4
    CONSUMED = 5


class Ledger:
    """Rollouts of the open steps by stage, and the totals of the run."""

    def __init__(self) -> None:
        self._open: dict[str, Stage] = {}
        self._closed: set[str] = set()
        self.num_dispatched = 0
        self.num_consumed = 0
        self.dropped: Counter[str] = Counter()

    def dispatch(self, rollout_ids: Iterable[str]) -> None:
        """Open rollouts of a step; a name may be used once."""
        for name in rollout_ids:
            if name in self._open or name in self._closed:
                raise TopdError(f"ledger: rollout {name} was dispatched twice")
            self._open[name] = Stage.DISPATCHED
            self.num_dispatched += 1

    def advance(self, rollout_ids: Iterable[str], stage: Stage) -> None:
        """Move rollouts on to `stage`; going back or standing still is an error."""
        for name in rollout_ids:
            was = self._stage(name)
            if stage <= was:
                raise TopdError(
                    f"ledger: rollout {name} is {was.name}, cannot become {stage.name}"
                )
            self._open[name] = stage
            if stage is Stage.CONSUMED:
                self._close(name)
                self.num_consumed += 1

    def drop(self, rollout_ids: Iterable[str], *, reason: str) -> None:
        """Take rollouts out for a reason that is counted."""
        for name in rollout_ids:
            self._stage(name)
            self._close(name)
            self.dropped[reason] += 1

    def waiting(self) -> dict[str, Stage]:
        """Open rollouts and where they are."""
        return dict(self._open)

    def close_step(self, rollout_ids: Iterable[str]) -> None:
        """End the step of these rollouts; raises TopdError naming what of it is still
        open.
        """
        names = list(rollout_ids)
        waiting = [name for name in names if name in self._open]
        if waiting:
            first = [
                f"{name} ({self._open[name].name})" for name in sorted(waiting)[:5]
            ]
            raise TopdError(f"ledger: {len(waiting)} rollouts unaccounted for: {first}")
        self._closed -= set(
            names
        )  # names are unique by position: a later step cannot repeat one
        accounted = self.num_consumed + self.dropped.total() + len(self._open)
        if self.num_dispatched != accounted:
            raise TopdError(
                f"ledger: dispatched {self.num_dispatched} != consumed"
                f" {self.num_consumed} + dropped {self.dropped.total()} + open"
                f" {len(self._open)}"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores; only while no rollout is open."""
        if self._open:
            raise TopdError("ledger: a checkpoint is taken when no rollout is open")
        return {
            "num_dispatched": self.num_dispatched,
            "num_consumed": self.num_consumed,
            "dropped": dict(self.dropped),
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "Ledger":
        """The ledger that `state` came from."""
        ledger = cls()
        ledger.num_dispatched = int(state["num_dispatched"])
        ledger.num_consumed = int(state["num_consumed"])
        ledger.dropped = Counter(state["dropped"])
        return ledger

    def _stage(self, name: str) -> Stage:
        if name not in self._open:
            known = "already closed" if name in self._closed else "never dispatched"
            raise TopdError(f"ledger: rollout {name} is {known}")
        return self._open[name]

    def _close(self, name: str) -> None:
        del self._open[name]
        self._closed.add(name)
