"""Real processes are killed, stopped and asked to leave; the student comes out the same."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flow.conftest import BIN, ROOT, Run, Setting, topd

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500)]

DEADLINE_S = 240
Started = subprocess.Popen[str]


def losses(run: Run) -> list[tuple[float, float]]:
    return [(line["loss/opd"], line["loss/traj"]) for line in run.metrics]


def happened(run: Run) -> list[str]:
    return [event["event"] for event in run.events]


@contextmanager
def started(*args: str | Path) -> Iterator[Started]:
    """`topd …` under way, in a process group of its own, which ends with the block."""
    process = subprocess.Popen(
        [BIN / "topd", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_all(process.pid)
        process.wait(DEADLINE_S)


def kill_all(parent: int) -> None:
    """What a machine does that goes away: nobody below `parent` gets to say anything."""
    if psutil.pid_exists(parent):
        for child in [*below(parent), psutil.Process(parent)]:
            signalled(child, signal.SIGKILL)


def below(parent: int) -> list[psutil.Process]:
    return psutil.Process(parent).children(recursive=True)


def signalled(process: psutil.Process, what: signal.Signals) -> None:
    try:
        process.send_signal(what)
    except psutil.NoSuchProcess:
        return


def wait_until(ready: Callable[[], bool], process: Started) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        assert process.poll() is None, f"ended too early: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.02)


def strike(process: Started, worker: str, what: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to the actor of a class."""
    victims = [one for one in below(process.pid) if command(one).startswith(f"ray::{worker}")]
    assert len(victims) == 1
    signalled(victims[0], what)


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # ended since it was listed
        return ""


def has_steps(run: Run, count: int) -> Callable[[], bool]:
    metrics = run.path / "metrics.jsonl"
    return lambda: metrics.is_file() and len(metrics.read_text().splitlines()) >= count


def ended(process: Started) -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    return output


def assert_same(run: Run, whole: Run) -> None:
    """Losses, accuracy, counts and the exported bytes."""
    assert losses(run) == losses(whole)
    counted: tuple[str, ...] = (
        "accuracy_before",
        "accuracy_after",
        "num_rollouts",
        "num_divergent",
    )
    assert [run.summary[key] for key in counted] == [whole.summary[key] for key in counted]
    one, other = (path / "export" / "model.safetensors" for path in (run.path, whole.path))
    assert one.read_bytes() == other.read_bytes()


def test_engines_and_probe_workers_that_are_killed_are_replaced(
    setting: Setting, whole: Run
) -> None:
    run = setting.run("struck")
    with started("train", setting.file, "run.name=struck") as process:
        for step, worker in enumerate(("RolloutWorker", "TeacherWorker", "ProbeWorker"), start=1):
            wait_until(has_steps(run, step), process)
            strike(process, worker)
        output = ended(process)
    assert "Traceback" not in output
    replaced = [event["actor"] for event in run.events if event["event"] == "replaced"]
    assert replaced == ["rollout[0]", "teacher[0]", "prober[0]"]
    assert run.metrics[-1]["cluster/num_failures"] == run.summary["num_failures"] == 3
    assert_same(run, whole)


def test_with_a_learner_rank_the_run_goes_back_to_its_checkpoint(
    setting: Setting, whole: Run
) -> None:
    run = setting.run("went-back")
    with started("train", setting.file, "run.name=went-back") as process:
        wait_until(has_steps(run, 3), process)
        strike(process, "LearnerWorker")
        output = ended(process)
    assert "going back to step 2" in output
    assert happened(run).count("went_back") == 1
    assert_same(run, whole)


def test_a_worker_that_is_silent_beyond_its_deadline_is_replaced(
    setting: Setting, whole: Run
) -> None:
    run = setting.run("silent")
    overrides = ("run.name=silent", "cluster.call_deadline_s=25")
    with started("train", setting.file, *overrides) as process:
        wait_until(has_steps(run, 1), process)
        strike(process, "ProbeWorker", signal.SIGSTOP)
        ended(process)
    (event,) = [event for event in run.events if event["event"] == "replaced"]
    assert event["actor"] == "prober[0]"
    assert "owed the result of" in event["error"]
    assert_same(run, whole)


def test_beyond_its_budget_a_run_ends_and_says_who_died_and_how_to_go_on(
    setting: Setting, whole: Run
) -> None:
    run = setting.run("ended")
    overrides = ("run.name=ended", "run.checkpoint_every=1", "cluster.max_failures=0")
    with started("train", setting.file, *overrides) as process:
        wait_until((run.path / "checkpoints" / "latest").exists, process)
        strike(process, "RolloutWorker")
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, output
    assert "rollout[0] died in" in output
    assert f"topd resume {run.path}" in output
    assert "Traceback" not in output
    assert "failed" in happened(run)
    done = topd("resume", run.path)
    assert done.code == 0, done.output
    assert losses(run) == losses(whole)


def test_sigterm_ends_the_step_and_leaves_a_checkpoint_to_resume_from(
    setting: Setting, whole: Run
) -> None:
    run = setting.run("preempted")
    with started("train", setting.file, "run.name=preempted") as process:
        wait_until(has_steps(run, 1), process)
        process.send_signal(signal.SIGTERM)
        output = ended(process)
    steps = len(run.metrics)
    assert steps in (1, 2)  # the one under way was ended
    assert f"topd resume {run.path}" in output
    assert (run.path / "checkpoints" / "latest").read_text() == f"step_{steps}\n"
    assert not (run.path / "summary.json").exists()
    done = topd("resume", run.path)
    assert done.code == 0, done.output
    assert_same(run, whole)


def test_a_job_whose_driver_died_goes_on_when_it_is_submitted_again(
    setting: Setting, whole: Run
) -> None:
    run = setting.run("again")
    again: Any = ("train", "--resume", setting.file, "run.name=again")
    with started(*again) as process:
        wait_until(has_steps(run, 3), process)
        process.send_signal(signal.SIGSTOP)  # or it would be done before it is asked
        refused = topd("resume", run.path)
        assert refused.code == 2
        assert f"process {process.pid} on " in refused.output.replace("\n", "")
    done = topd(*again)
    assert done.code == 0, done.output
    assert_same(run, whole)
    finished = topd(*again)
    assert finished.code == 0, finished.output
    other = topd(*again, "learner.lr=1e-4")
    assert other.code == 2
    assert "another config" in other.output
