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
        # Steps finished when each loss happened, oldest first. Steps that are done
        # again after a return to a checkpoint count again: a loss at the same step
        # every time must not be forgiven for ever.
        self._losses = deque[int]()
        self._steps = 0
        self.num_failures = 0
        """All losses, those outside the window too."""

    def count_step(self) -> None:
        """Count a finished step: the window moves on."""
        self._steps += 1

    async def spend(self, error: TopdError) -> None:
        """Count a loss and pause, twice as long as after the loss before it.

        Raises `error` where the budget is spent.
        """
        while self._losses and self._losses[0] <= self._steps - self._window_steps:
            self._losses.popleft()
        num_recent = len(self._losses)
        if num_recent >= self._most:
            raise error
        self._losses.append(self._steps)
        self.num_failures += 1
        pause_s = _FIRST_PAUSE_S * 2 ** min(num_recent, 10)
        await asyncio.sleep(min(_LONGEST_PAUSE_S, pause_s))


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

    def note(self, actor: str, error: TopdError) -> None:
        """Record a replacement that is no loss: another actor's loss made it needed.

        Raises `error` where the session has ended.
        """
        if self._closed:
            raise error
        self._on_loss(actor, error)

    def close(self) -> None:
        """Refuse from here on: the session has ended its actors."""
        self._closed = True
