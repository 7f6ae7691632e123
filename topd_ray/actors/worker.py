"""What the four kinds of worker have in common: a log file, a clock, a last word."""

import faulthandler
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from topd_ray.engines.fatal import as_topd_error, is_fatal
from topd_ray.engines.protocols import WakePart

P = ParamSpec("P")


class Worker:
    """Base class of the workers.

    Its constructor runs first, so that a failure to load a model is in the log too.

    Where a method of a subclass meets an error that no later call would survive, it
    writes the error to the log and raises `EngineDiedError`. The handle then ends this
    process, and starts another: as if it had died, but with a reason.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, method in list(vars(cls).items()):
            if inspect.isfunction(method) and not name.startswith("_"):
                setattr(cls, name, _with_last_word(method))

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

    def sleep(self) -> None:
        """Give the memory of its GPU to others; does nothing where it has none."""

    def wake(self, part: WakePart = "all") -> None:
        """Take the memory back: all of it, or enough to load new weights."""

    def close(self) -> None:
        """Free what the worker holds."""

    def pin(self, core: int) -> None:
        """Bind every thread of this process to one core (benchmarks do this)."""
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {core})


def _with_last_word(method: Callable[P, object]) -> Callable[P, object]:
    """Return a method, or a generator, that raises `EngineDiedError` where it ends the
    worker.
    """
    if inspect.isgeneratorfunction(method):

        @wraps(method)
        def generator(*arguments: P.args, **named: P.kwargs) -> Iterator[object]:
            with _last_word():
                yield from method(*arguments, **named)

        return generator

    @wraps(method)
    def call(*arguments: P.args, **named: P.kwargs) -> object:
        with _last_word():
            return method(*arguments, **named)

    return call


@contextmanager
def _last_word() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_fatal(error):
            raise
        traceback.print_exc()
        raise as_topd_error(error) from None
