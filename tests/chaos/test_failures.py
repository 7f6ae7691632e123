"""Processes of a run are killed, stopped or told to end; the student stays the same."""

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
from tests.runs import INLINE, ON_TRANSFORMERS, Run, Setting, topd, topd_process

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]
LIMIT = "health.max_bad_steps=1"  # a step that cannot be trusted would end the run
ACTORS = {
    "RolloutWorker": "rollout",
    "TeacherWorker": "teacher",
    "ProbeWorker": "prober",
    "LearnerWorker": "learner",
}


@pytest.mark.fault(
    "kill -9 of rollout engine, teacher, learner, probe worker in turn",
    injected=4,
    done_again="calls under way; for the learner 1 or 2 steps",
)
def test_actors_that_are_killed_are_replaced_and_a_learner_costs_a_step(
    setting: Setting, whole: Run
) -> None:
    run = setting.run("struck")
    overrides = ("run.name=struck", "cluster.max_failures=4")
    with started("train", setting.file, *overrides) as process:
        # The step after each of these needs the actor, so its loss is seen at once.
        for step, worker in (
            (1, "RolloutWorker"),
            (2, "TeacherWorker"),
            (3, "LearnerWorker"),
        ):
            wait_until(has_steps(run, step), process)
            strike(process, worker)
        wait_until(lambda: "went_back" in happened(run), process)
        wait_until(has_steps(run, 3), process)
        strike(process, "ProbeWorker")
        output = ended(process)
    assert "Traceback" not in output
    assert "for memory" not in output  # Ray's report of any kill mentions memory
    replaced = [event["actor"] for event in run.events if event["event"] == "replaced"]
    assert replaced == ["rollout[0]", "teacher[0]", "prober[0]"]
    for actor in replaced:
        assert (run.path / "logs" / f"{actor}.log").is_file()
    assert "going back to step 2" in output
    assert happened(run).count("went_back") == 1
    assert run.metrics[-1]["cluster/num_failures"] == run.summary["num_failures"] == 4
    assert_same(run, whole)


@pytest.mark.chaos
@pytest.mark.parametrize(("kind", "name"), ACTORS.items())
def test_an_actor_that_is_silent_beyond_its_deadline_is_given_up(
    setting: Setting, whole: Run, kind: str, name: str, record_property: Any
) -> None:
    """The process is alive and answers nothing."""
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


@pytest.mark.fault(
    "SIGTERM, `topd resume`, kill -9 of driver and actors, the job submitted again",
    injected=2,
    done_again="none after SIGTERM; 1 or 2 steps after the kill",
)
def test_a_run_that_is_stopped_and_killed_goes_on_as_if_nothing_had_happened(
    setting: Setting,
) -> None:
    """On transformers, which load faster: each of three processes starts all actors."""
    undisturbed = setting.train("undisturbed", *INLINE)
    run = setting.run("again")
    overrides = ("run.name=again", LIMIT, *ON_TRANSFORMERS)
    again: Any = ("train", "--resume", setting.file, *overrides)
    with started(*again) as process:
        wait_until(has_steps(run, 1), process)
        process.send_signal(signal.SIGTERM)
        output = ended(process)
    steps = len(run.metrics)
    assert steps in (1, 2)  # the step under way was ended
    assert f"topd resume {run.path}" in output
    assert (run.path / "checkpoints" / "latest").read_text() == f"step_{steps}\n"
    assert not (run.path / "summary.json").exists()

    with started("resume", run.path) as process:
        wait_until(has_steps(run, 3), process)
        process.send_signal(
            signal.SIGSTOP
        )  # or it might end before `topd resume` looks
        refused = topd("resume", run.path)
        assert refused.code == 2
        assert f"process {process.pid} on " in refused.output.replace("\n", "")
    assert len(run.metrics) >= 3  # more than the checkpoint holds

    done = topd_process(*again)
    assert done.code == 0, done.output
    assert happened(run).count("resumed") == 2
    assert_same(run, undisturbed)
    finished = topd(*again)
    assert finished.code == 0, finished.output
    other = topd(*again, "learner.lr=1e-4")
    assert other.code == 2
    assert "may not change learner.lr" in other.output


@pytest.mark.chaos
@pytest.mark.fault(
    "SIGTERM twice, then `topd resume`",
    injected=1,
    done_again="steps since the checkpoint",
)
def test_a_second_sigterm_ends_it_at_once_and_leaves_no_process_behind(
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
            os.kill(learner, signal.SIGCONT)  # a stopped process cannot end
        _, alive = psutil.wait_procs(
            others, timeout=120
        )  # Ray's own agents take a minute
        assert not alive
    resume(run)
    assert_same(run, whole)
