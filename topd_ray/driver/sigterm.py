"""SIGTERM: the machine is wanted back. What is under way may end, then there is a
checkpoint.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import TypeVar

T = TypeVar("T")
_AT_ONCE = 128 + signal.SIGTERM


class Stop:
    """Whether the run was asked to end, and how long it may still take."""

    def __init__(self, grace_s: float) -> None:
        self.asked = False
        self._grace_s = grace_s
        self._late = asyncio.Event()

    @property
    def notice(self) -> str:
        """What the signal leads to."""
        return (
            f"SIGTERM: ending what is under way, for at most {self._grace_s:g} s "
            "(cluster.grace_s); a second one ends the run at once"
        )

    def listen(self, tell: Callable[[], None]) -> None:
        """Take signals from here on, in the loop that runs; nothing outside the main
        thread.
        """
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self.asked:
                os._exit(_AT_ONCE)
            self.asked = True
            loop.call_later(self._grace_s, self._late.set)
            tell()

        try:
            loop.add_signal_handler(signal.SIGTERM, stop)
        except ValueError:  # signals are the main thread's
            return

    async def unless_late(self, work: Coroutine[None, None, T]) -> T | None:
        """The work's result; None where the grace ended first, and the work was given
        up.
        """
        task, late = (
            asyncio.ensure_future(work),
            asyncio.ensure_future(self._late.wait()),
        )
        try:
            await asyncio.wait((task, late), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return None
        finally:
            late.cancel()
            task.cancel()


__all__ = ["Stop"]
