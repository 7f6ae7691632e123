"""A learner that is ten times too slow, for hours: queues stay bounded, memory flat."""

import json
import os
import signal
import statistics
import time
from collections import deque
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from tests.chaos.harm import (
    DEADLINE_S,
    below,
    command,
    has_steps,
    num_steps,
    send,
    started,
    wait_until,
    workers,
)
from tests.runs import Run, Setting

MINUTES = float(os.environ.get("TOPD_SOAK_MINUTES", "120"))
WARM_UP_STEPS = 20
STOPPED_S, AWAKE_S = 0.45, 0.05
EVERY_S = 5.0
pytestmark = [
    pytest.mark.engines,
    pytest.mark.chaos,
    pytest.mark.timeout(60 * MINUTES + 900),
]


def spilled(session: Path) -> list[Path]:
    """Return the files that Ray wrote because the object store was full."""
    return [path for path in session.rglob("*spilled*/*") if path.is_file()]


def session_folder(processes: list[psutil.Process]) -> Path:
    (raylet,) = {
        word.removeprefix("--session_dir=").removeprefix("--session-dir=")
        for process in processes
        for word in command(process).split()
        if word.startswith(("--session_dir=", "--session-dir="))
        and "raylet" in command(process).split()[0]
    }
    return Path(raylet)


def medians(values: list[int]) -> list[float]:
    """Return the median of each eighth of `values`."""
    size = len(values) // 8
    return [statistics.median(values[i * size : (i + 1) * size]) for i in range(8)]


def driver_state(run: Run) -> dict[str, Any]:
    """Return the driver's part of the newest checkpoint."""
    checkpoints = run.path / "checkpoints"
    newest = (checkpoints / "latest").read_text().strip()
    state: dict[str, Any] = json.loads(
        (checkpoints / newest / "driver.json").read_text()
    )
    return state


def test_a_slow_learner_fills_no_memory(setting: Setting, record_property: Any) -> None:
    record_property(
        "fault",
        "a learner 10 x too slow (stopped 90 % of the time), rollouts a step ahead",
    )
    run = setting.run("soak")
    length = ("run.steps=1000000", "run.checkpoint_every=50", "rollout.max_staleness=1")
    with started("train", setting.file, "run.name=soak", *length) as process:
        wait_until(has_steps(run, WARM_UP_STEPS), process)
        here = [psutil.Process(process.pid), *below(process.pid)]
        (learner,) = workers(process, "LearnerWorker")
        memory: dict[str, list[int]] = {
            f"{command(child)[:60]} ({child.pid})": [] for child in here
        }
        output = deque[str](maxlen=100)  # a pipe that is not read fills up
        reader = Thread(target=output.extend, args=(process.stdout,), daemon=True)
        reader.start()
        began = looked = time.monotonic()
        while (now := time.monotonic()) - began < 60 * MINUTES:
            assert process.poll() is None, output
            send(learner, signal.SIGSTOP)
            time.sleep(STOPPED_S)
            send(learner, signal.SIGCONT)
            time.sleep(AWAKE_S)
            if now - looked > EVERY_S:
                looked = now
                for values, child in zip(memory.values(), here, strict=True):
                    # Raises where the process has ended: none may.
                    values.append(child.memory_info().rss)
        slow_steps = num_steps(run) - WARM_UP_STEPS
        assert not spilled(session_folder(here))
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0, output
        reader.join()
    (setting.folder / "memory.json").write_text(json.dumps(memory))
    whole = medians([sum(at_once) for at_once in zip(*memory.values(), strict=True)])
    growth = whole[-1] / whole[1] - 1
    record_property(
        "injected",
        f"{MINUTES:g} min, {slow_steps} steps; resident memory of driver, actors and "
        f"Ray {growth:+.1%} from the second eighth of the time to the last; no spill",
    )
    record_property("done_again", "none")
    assert abs(growth) < 0.05, {
        name: medians(values) for name, values in memory.items()
    }
    kept = driver_state(run)
    ledger = kept["ledger"]
    dispatched, consumed = ledger["num_dispatched"], ledger["num_consumed"]
    assert dispatched == 8 * kept["step"] == consumed + sum(ledger["dropped"].values())
    assert kept["step"] == len(run.metrics)
