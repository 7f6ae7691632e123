"""Real processes are killed, stopped and asked to leave; the student comes out the
same.
"""

import os
import signal
from contextlib import suppress
from typing import Any

import psutil
import pytest

from tests.chaos.harm import (
    DEADLINE_S,
    assert_same,
    below,
    ended,
    happened,
    has_steps,
    resume,
    started,
    strike,
    wait_until,
)
from tests.runs import Run, Setting, topd

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500)]
ACTORS = {
    "RolloutWorker": "rollout",
    "TeacherWorker": "teacher",
    "ProbeWorker": "prober",
    "LearnerWorker": "learner",
}


@pytest.mark.fault(
    "kill -9 of rollout engine, teacher, probe worker in turn",
    injected=3,
    done_again="calls under way",
)
def test_engines_and_probe_workers_that_are_killed_are_replaced(
    setting: Setting, whole: Run
) -> None:
    run = setting.run("struck")
    with started("train", setting.file, "run.name=struck") as process:
        for step, worker in enumerate(
            ("RolloutWorker", "TeacherWorker", "ProbeWorker"), start=1
        ):
            wait_until(has_steps(run, step), process)
            strike(process, worker)
        output = ended(process)
    assert "Traceback" not in output
    replaced = [event["actor"] for event in run.events if event["event"] == "replaced"]
    assert replaced == ["rollout[0]", "teacher[0]", "prober[0]"]
    for actor in replaced:
        assert (run.path / "logs" / f"{actor}.log").is_file()
    assert run.metrics[-1]["cluster/num_failures"] == run.summary["num_failures"] == 3
    assert_same(run, whole)


@pytest.mark.fault("kill -9 of the learner", injected=1, done_again="1 or 2 steps")
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


@pytest.mark.chaos
@pytest.mark.parametrize(("kind", "name"), ACTORS.items())
def test_an_actor_that_is_silent_beyond_its_deadline_is_given_up(
    setting: Setting, whole: Run, kind: str, name: str, record_property: Any
) -> None:
    """Wedged, not dead: its process is there, and answers nothing."""
    what, done_again = "replaced", "calls under way"
    if name == "learner":
        what, done_again = "went_back", "steps since the checkpoint"
    record_property("fault", f"SIGSTOP of {name}[0]")
    record_property("injected", 1)
    record_property("done_again", done_again)
    run = setting.run(f"silent-{name}")
    overrides = (f"run.name=silent-{name}", "cluster.call_deadline_s=25")
    with started("train", setting.file, *overrides) as process:
        wait_until(has_steps(run, 1), process)
        stopped = strike(process, kind, signal.SIGSTOP)
        wait_until(lambda: what in happened(run), process)
        wait_until(lambda: not psutil.pid_exists(stopped), process)
        ended(process)
    (event,) = [event for event in run.events if event["event"] == what]
    assert f"{name}[0] owed the result of" in event["error"]
    assert_same(run, whole)


@pytest.mark.chaos
@pytest.mark.fault(
    "one failure more than cluster.max_failures, then `topd resume`",
    injected=1,
    done_again="steps since the checkpoint",
)
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
    resume(run)
    assert_same(run, whole)


@pytest.mark.fault("SIGTERM, then `topd resume`", injected=1, done_again="none")
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
    resume(run)
    assert_same(run, whole)


@pytest.mark.chaos
@pytest.mark.fault(
    "SIGTERM twice, then `topd resume`",
    injected=1,
    done_again="steps since the checkpoint",
)
def test_a_second_sigterm_ends_it_at_once_and_leaves_nobody_behind(
    setting: Setting, whole: Run
) -> None:
    run = setting.run("hurried")
    with started("train", setting.file, "run.name=hurried") as process:
        wait_until(has_steps(run, 3), process)
        others = below(process.pid)
        learner = strike(
            process, "LearnerWorker", signal.SIGSTOP
        )  # so that it is not done before
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in happened(run), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        with suppress(ProcessLookupError):
            os.kill(learner, signal.SIGCONT)  # who is stopped cannot leave
        _, alive = psutil.wait_procs(
            others, timeout=120
        )  # Ray's own agents take a minute
        assert not alive
    resume(run)
    assert_same(run, whole)


@pytest.mark.fault(
    "kill -9 of driver and actors, the job submitted again",
    injected=1,
    done_again="1 or 2 steps",
)
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
