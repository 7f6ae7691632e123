"""Handles that look like Ray's, over workers in this very process.

    handle.method.options(...).remote(...)  ->  references, already resolved

A call runs to its end inside `.remote()`, in the order of submission, as an actor's
would; a streaming call is drawn to its end too. So nothing overlaps, no deadline can
fire, and nothing is copied: for many small runs on few cores, where starting actors
costs more than it hides.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from inspect import isgenerator
from typing import Any


class InlineReference:
    """A value or an error that is already there."""

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self._value, self._error = value, error

    def get(self) -> Any:
        """The value; raises what the call raised."""
        if self._error is not None:
            raise self._error
        return self._value

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(
            0
        ).__await__()  # others get their turn, as while waiting for Ray
        return self.get()


class InlineStream:
    """What a streaming call yielded."""

    def __init__(self, items: list[InlineReference]) -> None:
        self._items = items

    async def __aiter__(self) -> AsyncIterator[InlineReference]:
        for item in self._items:
            yield item

    async def completed(self) -> None:
        """Nothing is left to come; raises what ended the call."""
        if self._items:
            await self._items[-1]


class _Method:
    def __init__(self, call: Callable[..., Any], num_returns: int | str = 1) -> None:
        self._call, self._num_returns = call, num_returns

    def options(self, *, num_returns: int | str = 1, **_: Any) -> "_Method":
        return _Method(self._call, num_returns)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        try:
            value = self._call(*map(_resolved, args), **kwargs)
        except Exception as error:  # an actor's error travels in its references
            return self._failed(error)
        if self._num_returns == "streaming":
            assert isgenerator(value)
            return InlineStream(list(_drawn(value)))
        if self._num_returns == 1:
            return InlineReference(value)
        return tuple(InlineReference(part) for part in value)

    def _failed(self, error: Exception) -> Any:
        failed = InlineReference(error=error)
        if isinstance(self._num_returns, int) and self._num_returns > 1:
            return (failed,) * self._num_returns
        return failed


class InlineActor:
    """A worker behind the calls that an actor handle has."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._worker, name))

    def kill(self) -> None:
        """Free what the worker holds."""
        self._worker.close()


def _resolved(value: Any) -> Any:
    return value.get() if isinstance(value, InlineReference) else value


def _drawn(items: Generator[Any, Any, Any]) -> Generator[InlineReference, None, None]:
    try:
        for item in items:
            yield InlineReference(item)
    except Exception as error:
        yield InlineReference(error=error)
