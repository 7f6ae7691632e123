"""Peak memory of a run: this process and all it started, on this machine."""

import threading
from types import TracebackType
from typing import Self

import psutil

# A shorter peak may be missed; to look more often would take time of the run.
_PERIOD_S = 2.0


class PeakMemory:
    """Samples the resident memory of the process tree until the block ends.

    Pages shared between processes (libraries, the object store) count once a process,
    so the figure is an upper bound.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.last_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="peak-memory", daemon=True
        )

    @property
    def peak_gb(self) -> float:
        """In 10^9 bytes."""
        return self.peak_bytes / 1e9

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        root = psutil.Process()
        while True:
            self.last_bytes = _resident(root)
            self.peak_bytes = max(self.peak_bytes, self.last_bytes)
            if self._done.wait(_PERIOD_S):
                return


def _resident(root: psutil.Process) -> int:
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # ended since it was listed
            continue
    return total
