"""What the four kinds of worker have in common: a log file, a clock."""

import faulthandler
import os
import sys
import time
from pathlib import Path


class Worker:
    """Base class of the workers.

    Its constructor runs first, so that a failure to load a model is in the log too.
    """

    def __init__(self, log: Path | None) -> None:
        """`log`: file for stdout and stderr of this process; None leaves both alone."""
        if log is None:
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for stream in (1, 2):  # native code prints past sys.stdout and sys.stderr
            os.dup2(handle, stream)
        os.close(handle)
        faulthandler.enable()  # a crash leaves the stack of every thread

    def ready(self) -> None:
        """Return once everything is loaded."""

    def clock(self) -> float:
        """Return this machine's monotonic clock, for the handle to compare with its
        own.
        """
        return time.monotonic()

    def close(self) -> None:
        """Free what the worker holds."""

    def pin(self, core: int) -> None:
        """Bind every thread of this process to one core (benchmarks do this)."""
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {core})
