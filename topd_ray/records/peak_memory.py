"""Peak memory of a run: this process and all it started, on this machine."""

import re
import threading
from collections import Counter
from types import TracebackType
from typing import Self

import psutil

# A shorter peak may be missed; to look more often would take time of the run.
_PERIOD_S = 2.0
_DRIVER = "driver"
_OTHER = "ray"
"""Ray's own processes: the object store, the scheduler, the dashboard."""
# Ray names an actor's process after its class, and the call that it works on.
_ACTOR = re.compile(r"ray::(Rollout|Teacher|Probe|Learner)Worker")


class PeakMemory:
    """Samples the resident memory of the process tree until the block ends.

    Pages shared between processes (libraries, the object store) count once a process,
    so the figures are upper bounds.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.last_bytes = 0
        self.role_peak_bytes: dict[str, int] = {}
        """`driver`, `rollout`, `teacher`, `probe`, `learner`, `ray` -> the peak of all
        its processes together; inline all are the driver.
        """
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="peak-memory", daemon=True
        )

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
            roles = _resident(root)
            self.last_bytes = roles.total()
            self.peak_bytes = max(self.peak_bytes, self.last_bytes)
            peaks = self.role_peak_bytes
            # A new mapping, because another thread may read the old one.
            self.role_peak_bytes = {
                role: max(peaks.get(role, 0), roles[role]) for role in peaks | roles
            }
            if self._done.wait(_PERIOD_S):
                return


def _resident(root: psutil.Process) -> Counter[str]:
    """Return the resident bytes of each role."""
    totals = Counter[str]()
    role_of = {root.pid: _DRIVER}
    # Parents come before their children.
    for process in [root, *root.children(recursive=True)]:
        try:
            with process.oneshot():
                role = role_of.get(process.pid) or _role(
                    process, role_of.get(process.ppid(), _OTHER)
                )
                totals[role] += process.memory_info().rss
        except psutil.Error:  # ended since it was listed
            continue
        role_of[process.pid] = role
    return totals


def _role(process: psutil.Process, parent: str) -> str:
    """Return a process's role: an actor's, its parent's where that is an actor."""
    actor = _ACTOR.match(" ".join(process.cmdline()))
    if actor:
        return actor[1].lower()
    return _OTHER if parent == _DRIVER else parent


__all__ = ["PeakMemory"]
