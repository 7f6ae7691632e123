"""Cores or a GPU, shared evenly by the work that runs on them."""

import asyncio
import heapq
import math
from itertools import count

_EPSILON_S = 1e-9
_SLICE_S = 0.02


class Device:
    """Processor sharing: each piece of work gets at most one unit, all together
    `capacity` units.

    With n pieces running, one that asks for s seconds takes s x max(1, n / capacity).
    """

    def __init__(self, capacity: float) -> None:
        """`capacity`: cores that single-threaded actors share, or 1 for a GPU."""
        self._capacity = capacity
        self._served_s = 0.0
        """Seconds of work that a piece running since the beginning would have had."""
        self._at_s = 0.0
        self._running: list[tuple[float, int, asyncio.Future[None]]] = []
        self._names = count()
        self._timer: asyncio.TimerHandle | None = None

    async def work(self, seconds: float) -> None:
        """Return when so many seconds of work are done."""
        if seconds <= 0:
            return
        self._catch_up()
        done = asyncio.get_running_loop().create_future()
        heapq.heappush(
            self._running, (self._served_s + seconds, next(self._names), done)
        )
        self._arm()
        await done

    @property
    def _rate(self) -> float:
        return min(1.0, self._capacity / len(self._running)) if self._running else 0.0

    def _catch_up(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._served_s += (now_s - self._at_s) * self._rate
        self._at_s = now_s

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._running:
            delay_s = max(0.0, self._running[0][0] - self._served_s) / self._rate
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._catch_up()
        self._served_s = max(
            self._served_s, self._running[0][0]
        )  # rounding must not stall it
        while self._running and self._running[0][0] <= self._served_s + _EPSILON_S:
            *_, done = heapq.heappop(self._running)
            if not done.done():
                done.set_result(None)
        self._arm()


class Engine:
    """One inference engine on a device: one piece of work at a time, the urgent first.

    What is not urgent gives way every `_SLICE_S`, as decode steps behind scoring do.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []
        self._names = count()
        self._busy = False

    async def work(self, seconds: float, *, urgent: bool = True) -> None:
        """Return when so many seconds of work are done."""
        slices = 1 if urgent else max(1, math.ceil(seconds / _SLICE_S))
        for _ in range(slices):
            await self._enter(urgent)
            await self._device.work(seconds / slices)
            self._leave()

    async def _enter(self, urgent: bool) -> None:
        if self._busy:
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (not urgent, next(self._names), turn))
            await turn  # the work that ends hands its place over
        self._busy = True

    def _leave(self) -> None:
        if self._waiting:
            heapq.heappop(self._waiting)[2].set_result(None)
        else:
            self._busy = False
