"""Measure what each test costs: `pytest -p tests.durations --costs FILE`.

The CPU seconds of a test are those of pytest and of every process below it, so that a
test of real engines is charged for its actors. A fixture is charged to the first test
that uses it. Wall-clock seconds depend on what else runs on the machine.
"""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pytest

SAMPLING_S = 1.0
"""A process that lives for less than this may be missed."""
PAGE = Path(__file__).parents[1] / "docs" / "tests.md"
BEGIN, END = "<!-- make durations: begin -->", "<!-- make durations: end -->"
NUM_SHOWN = 15


class Meter:
    """CPU seconds and number of all processes that were ever below this one."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._cpu_s: dict[tuple[int, float], float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._sample_for_ever, daemon=True).start()

    def read(self) -> tuple[float, int]:
        """Return the CPU seconds so far and the number of processes so far."""
        with self._lock:
            self._sample()
            return sum(self._cpu_s.values()), len(self._cpu_s)

    def _sample_for_ever(self) -> None:
        while True:
            time.sleep(SAMPLING_S)
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        for process in [self._own, *self._own.children(recursive=True)]:
            try:
                times = process.cpu_times()
                key = (process.pid, process.create_time())
            except psutil.NoSuchProcess:
                continue
            self._cpu_s[key] = times.user + times.system


class PhaseCost:
    """Adds to each report what the phase took; runs where the tests run."""

    def __init__(self) -> None:
        self._meter = Meter()
        self._before = (0.0, 0)

    def pytest_collection_finish(self) -> None:
        # The first test is not charged for the imports of all test files.
        self._before = self._meter.read()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        outcome: Any = yield
        now = self._meter.read()
        cost = (now[0] - self._before[0], now[1] - self._before[1])
        outcome.get_result().user_properties.append(("cost", cost))
        self._before = now


class Costs:
    """Collects the costs of all tests and writes them when the session ends."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._rows: dict[str, dict[str, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        row = self._rows.setdefault(
            report.nodeid, {"wall_s": 0.0, "cpu_s": 0.0, "processes": 0}
        )
        # A report carries the properties of the phases before it, too.
        cpu_s, processes = [v for k, v in report.user_properties if k == "cost"][-1]
        row["wall_s"] += report.duration
        row["cpu_s"] += cpu_s
        row["processes"] += processes

    def pytest_sessionfinish(self) -> None:
        self._target.write_text(json.dumps(self._rows, indent=1), encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", type=Path, help="write the cost of each test here")


def pytest_configure(config: pytest.Config) -> None:
    target = config.getoption("--costs")
    if not target:
        return
    is_worker = hasattr(config, "workerinput")  # of pytest-xdist
    if is_worker or not config.getoption("numprocesses", None):
        config.pluginmanager.register(PhaseCost())
    if not is_worker:
        config.pluginmanager.register(Costs(target))


def main() -> None:
    """Write the slowest tests of the files named on the command line into the page."""
    rows: dict[str, dict[str, float]] = {}
    for name in sys.argv[1:]:
        rows |= json.loads(Path(name).read_text(encoding="utf-8"))
    git = ["git", "-C", str(PAGE.parent)]
    commit = subprocess.check_output(
        [*git, "rev-parse", "--short", "HEAD"], text=True
    ).strip()
    head = (
        f"{platform.machine()}, {os.cpu_count()} logical cores, commit {commit},"
        f" {date.today()}: {len(rows)} tests,"
        f" {sum(row['cpu_s'] for row in rows.values()):,.0f} CPU seconds,"
        f" {sum(row['wall_s'] for row in rows.values()):,.0f} seconds one after the"
        " other."
    )
    lines = ["| test | CPU s | wall s | processes |", "| --- | ---: | ---: | ---: |"]
    slowest = sorted(rows.items(), key=lambda item: -item[1]["cpu_s"])[:NUM_SHOWN]
    for name, row in slowest:
        file, _, test = name.removeprefix("tests/").partition("::")
        title = test.replace("_", " ").replace("|", "/")  # a table's cells end in |
        lines.append(
            f"| `{file}` {title} |"
            f" {row['cpu_s']:.0f} | {row['wall_s']:.0f} | {row['processes']:.0f} |"
        )
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    table = "\n".join(lines)
    PAGE.write_text(
        f"{before}{BEGIN}\n{head}\n\n{table}\n{END}{after}", encoding="utf-8"
    )
    print(head, table, sep="\n\n")


if __name__ == "__main__":
    main()
