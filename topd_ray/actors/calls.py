"""Waits for actors: each has a deadline, and its error names who owed what.

Every exception of Ray's becomes a `TopdError` here, so that no traceback of a foreign
library is the answer to a lost process.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

from ray.exceptions import (
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from topd_ray.config import ClusterConfig
from topd_ray.errors import (
    ActorDiedError,
    ActorFailedError,
    ActorOutOfMemoryError,
    DeadlineError,
    EngineDiedError,
    LostObjectError,
    TopdError,
    first_line,
)

T = TypeVar("T")
_KEPT_CALLS = 12
"""Calls kept of each actor, for the record of its end."""
# "OOM" alone will not do: Ray's report of any SIGKILL names the OOM killer as one of
# several possible causes.
_MEMORY_WORDS = ("low on memory", "memory pressure", "OutOfMemory", "out of memory")
"""Words of Ray's report when its memory monitor has killed an actor's process."""


class Calls:
    """Turns references into awaited values, within the deadlines of the config."""

    def __init__(
        self,
        *,
        start_deadline_s: float,
        call_deadline_s: float,
        memory_hint: Callable[[str], str] = lambda _: "",
    ) -> None:
        """`memory_hint(actor)`: what `topd check` estimates, and which fields lower
        it.
        """
        self._start_deadline_s = start_deadline_s
        self._call_deadline_s = call_deadline_s
        self._memory_hint = memory_hint
        self._last: dict[str, deque[str]] = {}

    @classmethod
    def within(
        cls, cluster: ClusterConfig, memory_hint: Callable[[str], str] = lambda _: ""
    ) -> "Calls":
        """Return calls with the deadlines of `cluster`."""
        return cls(
            start_deadline_s=cluster.start_deadline_s,
            call_deadline_s=cluster.call_deadline_s,
            memory_hint=memory_hint,
        )

    async def start(self, actor: str, what: str, ref: Awaitable[T]) -> T:
        """Wait while an actor loads."""
        with self._noted(actor, what):
            return await self._within(
                self._start_deadline_s, "cluster.start_deadline_s", actor, what, ref
            )

    async def call(self, actor: str, what: str, ref: Awaitable[T]) -> T:
        """Wait for one call of an actor."""
        with self._noted(actor, what):
            return await self._within(
                self._call_deadline_s, "cluster.call_deadline_s", actor, what, ref
            )

    def last(self, actor: str) -> list[str]:
        """Return the last calls of an actor, oldest first.

        Each says what was called, when the wait began, how it ended and after how long.
        """
        return list(self._last.get(actor, ()))

    @contextmanager
    def _noted(self, actor: str, what: str) -> Iterator[None]:
        calls = self._last.setdefault(actor, deque(maxlen=_KEPT_CALLS))
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        began_s = time.monotonic()
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
            calls.append(
                f"{at} {what}: {outcome} after {time.monotonic() - began_s:.2f} s"
            )

    async def _within(
        self, deadline_s: float, field: str, actor: str, what: str, ref: Awaitable[T]
    ) -> T:
        try:
            # Not asyncio.wait_for: in Python 3.11 it swallows a cancellation that comes
            # together with the answer, and a cancelled chunk would go on.
            async with asyncio.timeout(deadline_s):
                return await ref
        except RayTaskError as error:
            raise self._of_cause(actor, what, error.cause, str(error)) from None
        except RayError as error:
            raise self._of_cause(actor, what, error, str(error)) from None
        except TimeoutError:
            raise DeadlineError(
                f"{actor} owed the result of {what} for {deadline_s:g} s ({field}); it"
                f" may be wedged or overloaded: see logs/{actor}.log in the run folder,"
                " or raise the deadline"
            ) from None

    def _of_cause(
        self, actor: str, what: str, cause: Exception, report: str
    ) -> TopdError:
        """Return our own error for an exception that a call of Ray's ended with."""
        if isinstance(cause, EngineDiedError):
            full = "out of memory" in str(cause)
            hint = self._memory_hint(actor) if full else ""
            return EngineDiedError(
                f"{actor} died in {what}: {cause}; its stack is in logs/{actor}.log in"
                f" the run folder{hint}"
            )
        if isinstance(cause, TopdError):
            return cause
        if isinstance(cause, ObjectLostError):  # the result, or an argument of the call
            return LostObjectError(
                f"{actor} needed for {what} what was lost with its node:"
                f" {first_line(cause)}"
            )
        died = isinstance(cause, RayActorError)
        if isinstance(cause, OutOfMemoryError) or (died and _names_memory(report)):
            return ActorOutOfMemoryError(
                f"{actor} was killed for memory in {what}; Ray says:"
                f" {_memory_report(report)}{self._memory_hint(actor)}"
            )
        if died:
            return ActorDiedError(f"{actor} died in {what}: {report}")
        return ActorFailedError(
            f"{actor} failed in {what}: {type(cause).__name__}: {cause}\n{report}"
        )


async def all_of(waits: Sequence[Awaitable[T]]) -> list[T]:
    """Wait for several calls at once; the first failure ends the wait for the
    others.
    """
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _names_memory(report: str) -> bool:
    return any(word in report for word in _MEMORY_WORDS)


def _memory_report(report: str) -> str:
    """Return the lines of Ray's report that say how much memory was used, and by
    whom.
    """
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    telling = [line for line in lines if "GB" in line or "memory" in line.lower()]
    return " | ".join((telling or lines)[:6])


__all__ = ["Calls", "all_of"]
