"""Workers in this very process, behind the interface that a Ray actor has.

A call runs to its end when it is submitted, as an actor's calls run in their order. A
streaming call runs on when its next item is wanted, and to its end where another call
comes first. So nothing overlaps, no deadline can fire, and nothing is copied: for many
small runs on few cores, where starting actors costs more than it hides.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from typing import Any, Protocol


class Closable(Protocol):
    """What the workers have in common."""

    def close(self) -> None:
        """Free what the worker holds."""


class InlineRef:
    """A value, or an error, that is already there."""

    def __init__(self, value: object = None, error: Exception | None = None) -> None:
        self._value = value
        self._error = error

    def get(self) -> Any:
        """Return the value, or raise what the call raised."""
        if self._error is not None:
            raise self._error
        return self._value

    def __await__(self) -> Generator[object, None, Any]:
        # other tasks get their turn, as while waiting for a real actor
        yield from asyncio.sleep(0).__await__()
        return self.get()


class InlineStream:
    """The items that a streaming call yields, drawn as they are wanted."""

    def __init__(self, items: Iterator[InlineRef]) -> None:
        self._items = items
        self._drawn = deque[InlineRef]()
        self._last: InlineRef | None = None

    async def __aiter__(self) -> AsyncIterator[InlineRef]:
        while (item := self._next()) is not None:
            yield item

    async def completed(self) -> None:
        """Raise what ended the call, if it failed."""
        self.finish()
        if self._last is not None:
            await self._last

    def finish(self) -> None:
        """Draw the rest: the process is asked for something else."""
        while (item := next(self._items, None)) is not None:
            self._drawn.append(item)
            self._last = item

    def _next(self) -> InlineRef | None:
        if self._drawn:
            return self._drawn.popleft()
        item = next(self._items, None)
        self._last = item or self._last
        return item


class InlineProcess:
    """A worker as a `Process` (handles.py)."""

    def __init__(self, worker: Closable) -> None:
        self._worker = worker
        self._stream: InlineStream | None = None

    def call(
        self, method: str, *arguments: object, num_returns: int = 1
    ) -> tuple[InlineRef, ...]:
        """Run the method; one reference a returned value."""
        self._finish_stream()
        return self._answered(method, arguments, num_returns)

    def stream(
        self, method: str, *arguments: object, room: int | None = None
    ) -> InlineStream:
        """Start a generator; `room` has no meaning here."""
        del room
        self._finish_stream()
        try:
            items = _drawn(self._run(method, arguments))
        except Exception as error:  # it is the stream's one item
            items = iter([InlineRef(error=error)])
        self._stream = InlineStream(items)
        return self._stream

    def interject(self, method: str, *arguments: object) -> InlineRef:
        """Run the method between two items of the stream under way."""
        (reference,) = self._answered(method, arguments, num_returns=1)
        return reference

    def kill(self) -> None:
        """Free what the worker holds."""
        self._worker.close()

    def _answered(
        self, method: str, arguments: Sequence[object], num_returns: int
    ) -> tuple[InlineRef, ...]:
        try:
            value = self._run(method, arguments)
        except Exception as error:  # an actor's error travels in its references
            return (InlineRef(error=error),) * num_returns
        parts = (value,) if num_returns == 1 else tuple(value)
        return tuple(InlineRef(part) for part in parts)

    def _finish_stream(self) -> None:
        if self._stream is not None:
            self._stream.finish()
            self._stream = None

    def _run(self, method: str, arguments: Sequence[object]) -> Any:
        values = [_resolved(argument) for argument in arguments]
        return getattr(self._worker, method)(*values)


def _resolved(value: object) -> object:
    return value.get() if isinstance(value, InlineRef) else value


def _drawn(items: Iterator[object]) -> Iterator[InlineRef]:
    try:
        for item in items:
            yield InlineRef(item)
    except Exception as error:  # a stream's error is its last reference
        yield InlineRef(error=error)
