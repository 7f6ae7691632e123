"""Waiting for actors: each wait has a deadline, and its error names who owed what."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from topd_ray.errors import (
    ActorDiedError,
    ActorFailedError,
    DeadlineError,
    LostObjectError,
    TopdError,
)

_KEPT_CALLS = 12
"""Of each actor, for the record of its end."""


class Caller:
    """Turns object references into awaited values."""

    def __init__(self, *, start_deadline_s: float, call_deadline_s: float) -> None:
        self._start_deadline_s, self._call_deadline_s = (
            start_deadline_s,
            call_deadline_s,
        )
        self._last: dict[str, deque[str]] = {}

    async def start(self, who: str, what: str, ref: Awaitable[Any]) -> Any:
        """Wait while an actor loads."""
        with self._noted(who, what):
            return await _within(
                self._start_deadline_s, "cluster.start_deadline_s", who, what, ref
            )

    async def call(self, who: str, what: str, ref: Awaitable[Any]) -> Any:
        """Wait for one call of an actor."""
        with self._noted(who, what):
            return await _within(
                self._call_deadline_s, "cluster.call_deadline_s", who, what, ref
            )

    def last(self, who: str) -> list[str]:
        """The last calls of an actor, oldest first: what, when the wait began, how it
        ended.
        """
        return list(self._last.get(who, ()))

    @contextmanager
    def _noted(self, who: str, what: str) -> Iterator[None]:
        calls = self._last.setdefault(who, deque(maxlen=_KEPT_CALLS))
        began = datetime.now(UTC)
        outcome = "abandoned"
        try:
            yield
            outcome = "answered"
        except StopAsyncIteration:  # the end of a stream
            outcome = "ended"
            raise
        except TopdError as error:
            outcome = type(error).__name__
            raise
        finally:
            at, took = (
                began.isoformat(timespec="milliseconds"),
                datetime.now(UTC) - began,
            )
            calls.append(f"{at} {what}: {outcome} after {took.total_seconds():.2f} s")

    async def all(self, waits: Sequence[Awaitable[Any]]) -> list[Any]:
        """Wait for several at once; the first failure ends the others' wait."""
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()


async def _within(
    deadline_s: float, field: str, who: str, what: str, ref: Awaitable[Any]
) -> Any:
    try:
        return await asyncio.wait_for(_awaited(ref), deadline_s)
    except TimeoutError:
        raise DeadlineError(
            f"{who} owed the result of {what} for {deadline_s:g} s ({field}); it may be"
            f" wedged or overloaded: see logs/{who}.log in the run folder, or raise the"
            " deadline"
        ) from None
    except ObjectLostError as error:
        raise _lost(who, what, error) from None
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ObjectLostError):  # an argument of the call
            raise _lost(who, what, cause) from None
        if isinstance(cause, TopdError):
            raise cause from None
        raise ActorFailedError(
            f"{who} failed in {what}: {type(cause).__name__}: {cause}\n{error}"
        ) from None
    except RayActorError as error:
        raise ActorDiedError(f"{who} died in {what}: {error}") from None


def _lost(who: str, what: str, error: ObjectLostError) -> LostObjectError:
    reason = str(error).splitlines()[0]
    return LostObjectError(
        f"{who} needed for {what} what was lost with its node: {reason}"
    )


async def _awaited(ref: Awaitable[Any]) -> Any:
    return await ref
