"""Processes beside this one, for work of hours that can be taken up again."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection


@contextmanager
def process_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of `count` fresh processes of one thread each.

    They end at once where this process ends or leaves the block by an exception, as by
    Ctrl-C: the pool's own way out would first finish everything that was submitted, and
    an orphan would compute beside the next attempt.
    """
    # A forked process would inherit the threads and the state of torch and Ray.
    spawn = multiprocessing.get_context("spawn")
    theirs, ours = spawn.Pipe(duplex=False)
    with (
        theirs,
        ours,
        ProcessPoolExecutor(
            count, mp_context=spawn, initializer=_begin, initargs=(theirs,)
        ) as pool,
    ):
        try:
            yield pool
        except BaseException:
            ours.close()
            raise


def _begin(parent: Connection) -> None:
    """Take one thread, and watch the parent from another."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # Threads of two processes would compete for the same cores.
    os.environ["OMP_NUM_THREADS"] = "1"  # for what this process starts
    # Imported here: the parent may have no need of it.
    import torch

    torch.set_num_threads(1)


def _end_with(parent: Connection) -> None:
    """Wait until the parent closes its end of the pipe; then end this process."""
    parent.poll(None)
    os._exit(1)
