"""When a lost actor may be replaced, and how many losses a run survives.

A rollout engine, a teacher or a probe worker is started anew with the newest weights,
and its unanswered calls are made again: seeds belong to the work, so the answers are
the same (`Handle` in handles.py). A learner rank holds state that no other actor has:
with it the run goes back to its newest checkpoint (`driver/session.py`).
"""

import asyncio
from collections import deque
from collections.abc import Callable

from topd_ray.errors import ActorDiedError, DeadlineError, TopdError

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
LOST = (ActorDiedError, DeadlineError)
"""Errors that another process in the actor's place may not run into."""


class FailureBudget:
    """Losses of actors that a run survives: at most `most` within `window_steps` steps.

    It is a rate, so that rare single losses over a long run do not add up to its end.
    """

    def __init__(self, most: int, *, window_steps: int) -> None:
        self._most = most
        self._window_steps = window_steps
        self._recent = deque[int]()  # optimizer step of each loss, oldest first
        self.step = 0
        """Optimizer steps done; the run keeps it up to date."""
        self.num_failures = 0
        """All losses of the run, old ones too."""

    async def spend(self, error: TopdError) -> None:
        """Count a loss and pause, twice as long as after the loss before it.

        Raises `error` where the budget is spent.
        """
        # A run that went back to a checkpoint counts its steps again from there.
        self._recent = deque(
            step
            for step in self._recent
            if self.step - self._window_steps < step <= self.step
        )
        if len(self._recent) >= self._most:
            raise error
        pause_s = min(
            _LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(len(self._recent), 10)
        )
        self._recent.append(self.step)
        self.num_failures += 1
        await asyncio.sleep(pause_s)


class Replacement:
    """Grants the replacement of lost actors, as long as its session lives."""

    def __init__(
        self, budget: FailureBudget, on_loss: Callable[[str, TopdError], None]
    ) -> None:
        """`on_loss(actor, error)` records a loss that is made good."""
        self._budget = budget
        self._on_loss = on_loss
        self._closed = False

    @classmethod
    def never(cls) -> "Replacement":
        """Return one that refuses: the first loss is an error."""
        return cls(FailureBudget(0, window_steps=1), lambda *_: None)

    async def grant(self, actor: str, error: TopdError) -> None:
        """Return when a lost actor may be replaced; raise `error` where it may not."""
        if self._closed:  # its session has ended: a new process would have no owner
            raise error
        await self._budget.spend(error)
        if self._closed:
            raise error
        self._on_loss(actor, error)

    def close(self) -> None:
        """Refuse from here on: the session has ended its actors."""
        self._closed = True
