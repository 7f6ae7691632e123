"""One session of a run: what a started fleet does until the run, or the fleet, ends."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from topd_ray.actors.protocols import Fleet
from topd_ray.actors.replacement import FailureBudget
from topd_ray.config import Config
from topd_ray.driver.bad_steps import BadSteps
from topd_ray.driver.checkpoint import Checkpoint, save_checkpoint
from topd_ray.driver.direct_transfer import DirectTransfer
from topd_ray.driver.evaluation import evaluate
from topd_ray.driver.health import truncation_notice
from topd_ray.driver.loop import FinishedStep, LoopHooks, Schedule, StepLoop
from topd_ray.driver.pipeline import Pipeline
from topd_ray.driver.sigterm import Stop
from topd_ray.driver.state import RunState
from topd_ray.driver.turns import RoleTurns
from topd_ray.driver.weight_sync import WeightSync
from topd_ray.evaluation import Accuracy
from topd_ray.inputs.run_inputs import RunInputs
from topd_ray.messages import Prompt
from topd_ray.records.metrics import Metrics, step_metrics
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.run_log import RunLog
from topd_ray.records.timeline import Work, busy_and_waits

_TEACHER = "teacher"
"""Folder in a checkpoint, for a teacher that is neither the start's nor the student."""


@dataclass(slots=True, kw_only=True)
class RunContext:
    """What all sessions of one process share."""

    config: Config
    folder: RunFolder
    inputs: RunInputs
    log: RunLog
    state: RunState
    stop: Stop
    budget: FailureBudget
    total_steps: int
    num_items: int
    """Prompts of all epochs."""
    started_s: float
    """Monotonic clock when the command began."""
    earlier_s: float
    """Seconds of earlier processes of the run, up to their checkpoints."""

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken so far."""
        return self.earlier_s + time.monotonic() - self.started_s


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Accuracy before and after training."""

    before: Accuracy
    after: Accuracy


class Training(LoopHooks):
    """Trains with one fleet, from a checkpoint or the start."""

    def __init__(
        self, run: RunContext, fleet: Fleet, checkpoint: Checkpoint | None
    ) -> None:
        self._run = run
        self._fleet = fleet
        self._checkpoint = checkpoint
        self._turns = RoleTurns(fleet)
        self._weight_sync = WeightSync(
            fleet,
            _direct_transfer(run, fleet),
            self._turns,
            on_failure=self._note_transfer,
        )
        self._bad_steps = BadSteps(run.config, run.folder, fleet.learners, run.log)
        self._has_warned = False
        self._last_ended_s = 0.0
        self._last_ended_cpu_s = 0.0
        self._earlier_works: Sequence[Work] = []

    def _note_transfer(self, policy_version: int, reason: str) -> None:
        log = self._run.log
        log.event("transfer_failed", policy_version=policy_version, reason=reason)
        log.say(f"weights {policy_version} went through the object store: {reason}")

    async def go(self) -> Accuracies | None:
        """Train to the end; None where a stop ended the training before it."""
        run = self._run
        before = await run.stop.unless_late(self._prepare())
        if before is None:
            return None
        loop = StepLoop(
            Schedule.of(run.config, run.total_steps),
            Pipeline(
                run.config,
                self._fleet,
                run.state.ledger,
                run.state.recent,
                self._turns,
            ),
            self._weight_sync,
            self._take_prompts,
            fleet=self._fleet,
            hooks=self,
            problems=run.inputs.problems,
            step=run.state.step,
            stop=run.stop,
        )
        self._last_ended_s = time.monotonic()
        self._last_ended_cpu_s = time.process_time()
        await loop.run()
        if run.state.step < run.total_steps:  # stopped: the last finished step is kept
            await self._write_checkpoint()
            return None
        after = await run.stop.unless_late(self._conclude())
        return None if after is None else Accuracies(before, after)

    async def _prepare(self) -> Accuracy:
        """Restore the checkpoint; return the accuracy before training."""
        run = self._run
        if self._checkpoint is not None:
            await self._restore(self._checkpoint.path)
        run.log.say("actors ready")
        if run.state.before is None:
            run.state.before = await self._evaluate("before training")
            if run.state.before.num_problems:  # a page that follows the run shows it
                run.log.event("evaluated_before", **asdict(run.state.before))
        else:
            run.log.remember(run.state.before)
        return run.state.before

    async def _conclude(self) -> Accuracy:
        """Return the accuracy after training, and export the student."""
        after = await self._evaluate("after training")
        await self._turns.to("learner")
        await self._fleet.learners.export(self._run.folder.export)
        return after

    def _take_prompts(self) -> list[Prompt]:
        """Return the prompts of the next step."""
        run = self._run
        count = run.config.prompts.per_step
        if run.config.run.steps is None:  # the last step of the last epoch may be short
            count = min(count, run.num_items - run.inputs.source.cursor)
        return run.inputs.source.take(count)

    def put_back(self, prompts: Sequence[Prompt]) -> None:
        """Take back the prompts of a step that is abandoned."""
        source = self._run.inputs.source
        source.go_to(source.cursor - len(prompts))

    async def finished(self, finished: FinishedStep) -> None:
        """Record a step; it lasted from the end of the one before it."""
        run = self._run
        run.state.step = finished.report.step
        run.budget.count_step()
        # Prompts that steps begun ahead have taken are no part of the state.
        run.state.cursor += len(finished.prompts)
        if self._weight_sync.followed is not None:
            run.state.teacher_version = self._weight_sync.followed.policy_version
        works = finished.receipts.works + finished.sync_works
        began_s = self._last_ended_s
        metrics = self._metrics(finished, works)
        run.state.totals.add_step(metrics)
        run.log.step(metrics, works, began_s=began_s)
        self._warn_of_truncation(finished)
        await self._bad_steps.watch(finished)

    def _warn_of_truncation(self, finished: FinishedStep) -> None:
        """Say once a session that the rollouts do not end."""
        if self._has_warned or self._run.config.objective.trajectory == "given":
            return
        notice = truncation_notice(finished.receipts)
        if notice is not None:
            self._has_warned = True
            self._run.log.event("truncated", step=finished.report.step, notice=notice)
            self._run.log.say(f"step {finished.report.step}: {notice}")

    def _metrics(self, finished: FinishedStep, works: Sequence[Work]) -> Metrics:
        """Return a step's metrics, with what each kind of actor waited for.

        `step/cpu_s` is CPU time of this process, evaluations left out: with
        `cluster.placement=inline` the whole step, with actors the driver's share.
        """
        began_s = self._last_ended_s
        began_cpu_s = self._last_ended_cpu_s
        self._last_ended_s = time.monotonic()
        self._last_ended_cpu_s = time.process_time()
        metrics = step_metrics(
            finished.report, finished.receipts, sync_s=finished.sync_s
        )
        metrics |= busy_and_waits(
            [*works, *self._earlier_works],
            began_s=began_s,
            ended_s=self._last_ended_s,
            actors=self._fleet.names,
        )
        metrics["step/wall_s"] = self._last_ended_s - began_s
        metrics["step/cpu_s"] = (
            self._last_ended_cpu_s - began_cpu_s - finished.evaluation_cpu_s
        )
        metrics["cluster/num_failures"] = self._run.budget.num_failures
        self._earlier_works = works  # a step begun ahead reaches back into this one
        return metrics

    def evaluated(self, step: int, accuracy: Accuracy) -> None:
        """Record an accuracy during training."""
        self._run.log.evaluated(accuracy, f"at step {step}", step)

    async def save(self) -> None:
        """Write a checkpoint and count its seconds."""
        began_s = time.monotonic()
        await self._write_checkpoint()
        seconds = time.monotonic() - began_s
        self._run.state.totals.add_seconds("checkpoint", seconds)

    async def _write_checkpoint(self) -> None:
        run = self._run
        totals = replace(run.state.totals, wall_s=run.wall_s)
        path = await save_checkpoint(
            run.folder,
            self._write_learner,
            step=run.state.step,
            driver={
                **replace(run.state, totals=totals).plain(),
                "inputs": run.inputs.fingerprints,
            },
            keep=run.config.run.keep_checkpoints,
            keep_every=run.config.run.keep_every,
        )
        run.log.event("checkpoint", step=run.state.step, path=path.name)

    async def _write_learner(self, folder: Path) -> None:
        await self._turns.to("learner")
        await self._fleet.learners.save(folder)
        teacher = self._weight_sync.followed
        # Only a stop saves between two steps that move the teacher.
        if teacher is not None and teacher.policy_version != self._run.state.step:
            await self._fleet.learners.save_teacher(folder / _TEACHER, teacher)

    async def _restore(self, path: Path) -> None:
        """Give every actor the weights that it had when the checkpoint was written."""
        state = self._run.state
        learners = self._fleet.learners
        await self._turns.to("learner")
        await learners.load(path)
        version = state.teacher_version
        if 0 < version < state.step:
            teacher = await learners.load_teacher(path / _TEACHER, version)
            await self._weight_sync.give_to_teachers(teacher)
        # The engines have loaded the student's folder, not the checkpoint.
        await self._weight_sync.publish(
            state.step, to_teachers=0 < version == state.step
        )
        await self._weight_sync.done()
        self._run.log.event("resumed", step=state.step, checkpoint=path.name)
        self._run.log.say(f"resumed from {path.name}")

    async def _evaluate(self, when: str) -> Accuracy:
        began_s = time.monotonic()
        await self._turns.to("rollout")
        accuracy = await evaluate(self._fleet, self._run.inputs.problems)
        seconds = time.monotonic() - began_s
        self._run.state.totals.add_seconds("evaluation", seconds)
        self._run.log.evaluated(accuracy, when)
        return accuracy


def _direct_transfer(run: RunContext, fleet: Fleet) -> DirectTransfer | None:
    if fleet.direct is None:
        return None
    return DirectTransfer(fleet.direct, run.config.weights)
