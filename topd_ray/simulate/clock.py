"""An event loop whose time passes only when all tasks wait, and then at once."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from topd_ray.errors import TopdError

T = TypeVar("T")


def run_in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a virtual clock, and return its result.

    Raises TopdError where everything waits for nothing.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and jumps to the next timer."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_Leaping(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.now_s


class _Leaping(selectors.DefaultSelector):
    """A selector that puts the clock forward where a loop would sleep."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        # Input still counts (asyncio wakes itself through a socket), but is not waited
        # for.
        ready = super().select(0)
        # No timer is set and no input is awaited: a real loop would sleep for ever.
        if timeout is None and not ready:
            raise TopdError("simulation: every actor waits and nothing is left to come")
        if timeout and not ready:
            self._loop.now_s += timeout
        return ready
