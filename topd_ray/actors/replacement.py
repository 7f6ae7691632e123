"""Actors that die, or owe an answer for too long, and what comes in their place.

A rollout engine, a teacher or a probe worker is started anew, with the newest weights,
and what it owed is asked again: seeds belong to the work, so the answer is the same. A
learner rank holds what nobody else has; with it the run goes back to its newest
checkpoint (`run.py`).
"""

import asyncio
from collections.abc import Callable
from typing import Any

from topd_ray.actors.calls import Caller
from topd_ray.actors.fleet import Fleet, Member, holder
from topd_ray.driver.weight_sync import Refit
from topd_ray.errors import ActorDiedError, DeadlineError, TopdError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
LOST = (ActorDiedError, DeadlineError)
"""What another actor may do better."""


class Budget:
    """Failures of machinery that a run survives (`cluster.max_failures`), each after a
    pause.
    """

    def __init__(self, most: int) -> None:
        self._most, self.spent = most, 0

    async def spend(self, error: TopdError) -> None:
        """Count a failure and wait, twice as long as the time before; raises it at the
        end.
        """
        if self.spent >= self._most:
            raise error
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self.spent, 10))
        self.spent += 1
        await asyncio.sleep(pause_s)


class Revival:
    """Replaces members of a fleet one by one."""

    def __init__(
        self, caller: Caller, refit: Refit, budget: Budget, note: Callable[..., None]
    ) -> None:
        """`note(event, **details)` writes a line of the run's events."""
        self._caller, self._refit, self._budget, self._note = (
            caller,
            refit,
            budget,
            note,
        )
        refit.revive = self.revive

    @classmethod
    def none(cls, fleet: Fleet, caller: Caller) -> "Revival":
        """Nobody comes: the first loss is an error."""
        return cls(caller, Refit(fleet, caller), Budget(0), lambda *_, **__: None)

    async def asked(
        self,
        who: str,
        actor: Any,
        what: str,
        send: Callable[[Any], Any],
        *,
        sent: tuple[Any, Any] | None = None,
    ) -> tuple[Any, ...]:
        """References that `send(handle)` returns, the last of them awaited.

        Where the actor is lost, the same is sent to the one in its place. `sent`: whom
        it was sent to already, and the references.
        """
        while True:
            handle, references = sent or _sent(actor, send)
            *payloads, receipt = (
                references if isinstance(references, tuple) else (references,)
            )
            try:
                return (*payloads, await self._caller.call(who, what, receipt))
            except LOST as error:
                await self.revive(actor, handle, error)
                sent = None

    async def revive(self, actor: Any, handle: Any, error: TopdError) -> None:
        """Return when somebody else has the place that `handle` had when it failed.

        Raises `error` where nobody comes: the budget is spent, or no process was lost.
        """
        if not isinstance(actor, Member):
            raise error
        async with actor.lock:  # one death fails several calls
            if actor.handle is not handle:
                return
            await self._budget.spend(error)
            self._note(
                "replaced",
                actor=actor.name,
                error=str(error).splitlines()[0],
                last_calls=self._caller.last(actor.name),
            )
            actor.replace()
            await self._caller.start(actor.name, "ready", actor.ready.remote())
            await self._refit.bring(actor)


def _sent(actor: Any, send: Callable[[Any], Any]) -> tuple[Any, Any]:
    handle = holder(actor)
    references = send(handle)  # several come as Ray's list
    return handle, tuple(references) if isinstance(references, list) else references
