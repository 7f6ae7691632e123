"""The queue of calls in front of a simulated actor."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class Lane:
    """Serves calls one at a time, in the order of submission, after a latency."""

    def __init__(self, latency_s: float) -> None:
        """`latency_s`: virtual seconds until a call of the driver's has arrived."""
        self._latency_s = latency_s
        self._turn = asyncio.Lock()  # wakes its waiters first come, first served
        self._tasks = set[asyncio.Task[None]]()

    def submit(self, call: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """Submit a call now; the task ends with its result."""
        return asyncio.ensure_future(self._serve(call, self._arrival_s()))

    def stream(
        self, call: Callable[[], AsyncIterator[T]], room: int
    ) -> AsyncIterator[T]:
        """Submit a call that yields; it pauses while `room` items wait to be taken."""
        items = asyncio.Queue[T | BaseException](room)
        pump = asyncio.ensure_future(self._pump(call, items, self._arrival_s()))
        self._tasks.add(pump)  # the loop itself keeps no task alive
        pump.add_done_callback(self._tasks.discard)
        return _taken(items)

    def _arrival_s(self) -> float:
        return asyncio.get_running_loop().time() + self._latency_s

    async def _serve(self, call: Callable[[], Awaitable[T]], arrival_s: float) -> T:
        async with self._turn:
            await _sleep_until(arrival_s)
            return await call()

    async def _pump(
        self,
        call: Callable[[], AsyncIterator[T]],
        items: "asyncio.Queue[T | BaseException]",
        arrival_s: float,
    ) -> None:
        try:
            async with self._turn:
                await _sleep_until(arrival_s)
                async for item in call():
                    await items.put(item)
        except Exception as error:  # it is raised where the items are taken
            await items.put(error)
        else:
            await items.put(StopAsyncIteration())


async def _sleep_until(time_s: float) -> None:
    await asyncio.sleep(max(0.0, time_s - asyncio.get_running_loop().time()))


async def _taken(items: "asyncio.Queue[T | BaseException]") -> AsyncIterator[T]:
    while True:
        item = await items.get()
        if isinstance(item, StopAsyncIteration):
            return
        if isinstance(item, BaseException):
            raise item
        yield item
