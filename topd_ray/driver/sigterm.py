"""SIGTERM: the machine is wanted back. The step under way may end within a grace
period.

What is not finished by then is abandoned, and the last finished step is written.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import TypeVar

T = TypeVar("T")
_AT_ONCE = 128 + signal.SIGTERM
"""Exit code of a process that a second SIGTERM ends without any clean-up."""


class Stop:
    """Whether the run has to end, and whether its grace period is over."""

    def __init__(self, grace_s: float) -> None:
        self.requested = False
        self._grace_s = grace_s
        self._late = asyncio.Event()

    @property
    def notice(self) -> str:
        """What the signal leads to, in words."""
        return (
            f"SIGTERM: ending the step under way, for at most {self._grace_s:g} s"
            " (cluster.grace_s); a second one ends the run at once"
        )

    def listen(self, on_signal: Callable[[], None]) -> None:
        """Handle SIGTERM from here on, in the running loop; only in the main thread."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self.requested:
                os._exit(_AT_ONCE)
            self.request()
            on_signal()

        try:
            loop.add_signal_handler(signal.SIGTERM, stop)
        except ValueError:  # only the main thread may handle signals
            return

    def request(self) -> None:
        """Ask the run to end; the grace period begins."""
        self.requested = True
        asyncio.get_running_loop().call_later(self._grace_s, self._late.set)

    async def unless_late(self, work: Coroutine[None, None, T]) -> T | None:
        """Return what `work` returns; None where the grace period ended first.

        The work is cancelled then, and has ended on return.
        """
        task = asyncio.ensure_future(work)
        late = asyncio.ensure_future(self._late.wait())
        try:
            await asyncio.wait((task, late), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            late.cancel()
            task.cancel()
            await asyncio.gather(task, late, return_exceptions=True)
