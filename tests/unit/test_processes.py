"""Work in processes beside this one ends with it, however that ends."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from topd_ray.processes import process_pool

DEADLINE_S = 60
PARENT = """
import os, signal, time
from pathlib import Path
from topd_ray.processes import process_pool

def endless(number):
    Path(f"{number}.pid").write_text(f"{os.getpid()}\\n")
    print(number, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    # A shell starts what it runs in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with process_pool(1) as pool:
        for future in [pool.submit(endless, number) for number in range(3)]:
            future.result()
"""


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_behind_or_begun_when_the_parent_is_told_to_end(
    how: str, tmp_path: Path
) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, "parent.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"0\n"
        worker = psutil.Process(int((tmp_path / "0.pid").read_text()))
        parent.send_signal(signal.Signals[how])
        assert parent.wait(DEADLINE_S) != 0
    _, alive = psutil.wait_procs([worker], timeout=DEADLINE_S)
    # Where no parent collects its exit status, a process that ended is still listed.
    assert all(one.status() == psutil.STATUS_ZOMBIE for one in alive)
    assert [file.name for file in tmp_path.glob("*.pid")] == ["0.pid"]


def test_results_and_exceptions_come_back() -> None:
    with process_pool(2) as pool:
        assert list(pool.map(abs, [-1, 2])) == [1, 2]
        with pytest.raises(ValueError, match="invalid literal"):
            pool.submit(int, "seven").result(DEADLINE_S)
