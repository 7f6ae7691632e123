"""Memory that `topd check` promises for each actor, beside what the actors took.

    python -m benchmarks.real.memory CONFIG [section.key=value ...]

Trains as `topd train` does and reads the peak resident memory (VmHWM) of each actor's
process while it runs. Prints a Markdown row a role, and the share of the machine.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from topd_ray.config import load_config
from topd_ray.inputs.paths import with_absolute_paths
from topd_ray.inputs.resources import make_plan

KINDS = {
    "RolloutWorker": "rollout",
    "TeacherWorker": "teacher",
    "ProberWorker": "probe",
    "LearnerWorker": "learner",
}
"""Role of an actor by the class in its process title, `ray::TeacherWorker.score`."""


def main(arguments: list[str]) -> None:
    """Run, watch, print."""
    config = with_absolute_paths(load_config(Path(arguments[0]), arguments[1:]))
    started_s = time.monotonic()
    run = subprocess.Popen([sys.executable, "-m", "topd_ray", "train", *arguments])
    peaks: dict[int, tuple[str, float]] = {}
    while run.poll() is None:
        for pid, role, gib in _actors(run.pid):
            peaks[pid] = (role, gib)
        time.sleep(0.5)
    print(f"\n{time.monotonic() - started_s:.0f} s, exit code {run.returncode}\n")
    print("| actor | topd check, GiB | peak, GiB | peak / promised |")
    print("|---|---:|---:|---:|")
    promised = {role.name: role.gib for role in make_plan(config).roles}
    for role, peak in sorted(peaks.values()):
        estimate = promised.get(role)
        ratio = f"{peak / estimate:.2f}" if estimate else "-"
        print(f"| {role} | {estimate or 0:.2f} | {peak:.2f} | {ratio} |")


def _actors(pid: int) -> Iterator[tuple[int, str, float]]:
    """Yield pid, role and peak memory in GiB of the run's actors."""
    for child in psutil.Process(pid).children(recursive=True):
        try:
            title = " ".join(child.cmdline())
            found = re.match(r"ray::(\w+)", title)
            if found is None or found[1] not in KINDS:
                continue
            status = Path(f"/proc/{child.pid}/status").read_text()
        except (psutil.Error, OSError):  # the process has ended meanwhile
            continue
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        if peak is not None:
            yield child.pid, KINDS[found[1]], int(peak[1]) / 2**20


if __name__ == "__main__":
    main(sys.argv[1:])
