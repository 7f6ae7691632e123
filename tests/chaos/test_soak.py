"""A learner that is ten times too slow, for minutes: queues stay bounded, memory flat."""

import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.harm import DEADLINE_S, below, command, num_steps, signalled, started, workers
from tests.runs import Setting

pytestmark = [pytest.mark.engines, pytest.mark.chaos, pytest.mark.timeout(9000)]
STEPS = int(os.environ.get("TOPD_SOAK_STEPS", "150"))
WARM_UP = 20
SLICE_S = 0.05


def spilled(session: Path) -> list[Path]:
    """What Ray wrote to disk because the object store was full."""
    return [path for path in session.rglob("*spilled*/*") if path.is_file()]


def session_folder(processes: list[psutil.Process]) -> Path:
    (raylet,) = {
        word.removeprefix("--session_dir=").removeprefix("--session-dir=")
        for one in processes
        for word in command(one).split()
        if word.startswith(("--session_dir=", "--session-dir="))
        and "raylet" in command(one).split()[0]
    }
    return Path(raylet)


def resident(processes: list[psutil.Process]) -> float:
    """Bytes of all that is `topd` or an actor."""
    found = 0
    for one in processes:
        try:
            found += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return float(found)


def test_a_slow_learner_fills_no_memory(setting: Setting, record_property: Any) -> None:
    record_property("fault", f"a learner 10 x too slow (SIGSTOP and SIGCONT), {STEPS} steps")
    run = setting.run("soak")
    memory: list[float] = []
    length = (f"run.steps={STEPS}", "run.checkpoint_every=50")
    with started("train", setting.file, "run.name=soak", *length) as process:
        began = time.monotonic()
        while process.poll() is None:
            steps = num_steps(run)
            if steps < WARM_UP or steps >= STEPS:
                time.sleep(0.5)
                continue
            if steps >= WARM_UP + len(memory):
                here = [psutil.Process(process.pid), *below(process.pid)]
                memory.append(resident([p for p in here if "ray::" in command(p) or p == here[0]]))
                session = session_folder(here)
            for learner in workers(process, "LearnerWorker"):
                signalled(learner, signal.SIGSTOP)
                time.sleep(9 * SLICE_S)
                signalled(learner, signal.SIGCONT)
                time.sleep(SLICE_S)
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert not spilled(session)
    assert process.returncode == 0, output
    quarter = len(memory) // 4
    early = statistics.median(memory[quarter : 2 * quarter])
    late = statistics.median(memory[-quarter:])
    growth = late / early - 1
    minutes = (time.monotonic() - began) / 60
    record_property("injected", f"{minutes:.0f} min; resident memory {growth:+.1%}, no spill")
    record_property("done_again", "none")
    assert abs(growth) < 0.05
    assert run.summary["num_rollouts"] == 8 * STEPS
