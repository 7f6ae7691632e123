"""Memory of the processes of a run, by role."""

import subprocess
import sys
import time

import pytest

from topd_ray.records import peak_memory
from topd_ray.records.peak_memory import PeakMemory

SLEEP = "import time; time.sleep(60)"


def test_a_process_counts_to_the_actor_that_its_title_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The title of an actor's process is its command line, which Ray writes over."""
    monkeypatch.setattr(peak_memory, "_PERIOD_S", 0.02)
    titles = ("ray::LearnerWorker.step", "ray::DashboardAgent")
    processes = [
        subprocess.Popen([title, "-c", SLEEP], executable=sys.executable)
        for title in titles
    ]
    try:
        with PeakMemory() as memory:
            deadline_s = time.monotonic() + 20
            while {"learner", "ray"} - memory.role_peak_bytes.keys():
                assert time.monotonic() < deadline_s, memory.role_peak_bytes
                time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    roles = memory.role_peak_bytes
    assert set(roles) == {"driver", "learner", "ray"}
    assert min(roles.values()) > 1_000_000
    assert max(roles.values()) < memory.peak_bytes <= sum(roles.values())
