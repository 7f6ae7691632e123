"""Waiting for actors: each wait has a deadline, and its error names who owed what."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from topd_ray.errors import ActorDiedError, ActorFailedError, DeadlineError, TopdError


class Caller:
    """Turns object references into awaited values."""

    def __init__(self, *, start_deadline_s: float, call_deadline_s: float) -> None:
        self._start_deadline_s, self._call_deadline_s = start_deadline_s, call_deadline_s

    async def start(self, who: str, what: str, ref: Awaitable[Any]) -> Any:
        """Wait while an actor loads."""
        return await _within(self._start_deadline_s, "cluster.start_deadline_s", who, what, ref)

    async def call(self, who: str, what: str, ref: Awaitable[Any]) -> Any:
        """Wait for one call of an actor."""
        return await _within(self._call_deadline_s, "cluster.call_deadline_s", who, what, ref)

    async def all(self, waits: Sequence[Awaitable[Any]]) -> list[Any]:
        """Wait for several at once; the first failure ends the others' wait."""
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()


async def _within(deadline_s: float, field: str, who: str, what: str, ref: Awaitable[Any]) -> Any:
    try:
        return await asyncio.wait_for(_awaited(ref), deadline_s)
    except TimeoutError:
        raise DeadlineError(
            f"{who} owed the result of {what} for {deadline_s:g} s ({field}); it may be wedged or "
            "overloaded: see its log in the Ray session folder, or raise the deadline"
        ) from None
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, TopdError):
            raise cause from None
        raise ActorFailedError(
            f"{who} failed in {what}: {type(cause).__name__}: {cause}\n{error}"
        ) from None
    except RayActorError as error:
        raise ActorDiedError(f"{who} died in {what}: {error}") from None


async def _awaited(ref: Awaitable[Any]) -> Any:
    return await ref
