"""The loop over optimizer steps: runs, `topd plan` and benchmarks share this one.

| who waits | for what | what wakes it |
|---|---|---|
| step n + 1 + `max_staleness` | the update of step n | the next `_begin_ahead` |
| a step beyond a checkpoint | that checkpoint | its save |
| an engine's rollouts | the weights of their version | its calls, in their order |
| an evaluation | the rollouts submitted before it | its calls, in their order |
| its report | the end of the next step | `_finish_first` |
| a save | the optimizer; no later step is under way | the end of the step |

Nothing is begun beyond the next checkpoint: its rollouts would be of weights that no
checkpoint holds, and a resumed run could not make them again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from topd_ray.actors.protocols import Fleet
from topd_ray.config import Config
from topd_ray.driver.evaluation import evaluate
from topd_ray.driver.pipeline import Pipeline
from topd_ray.driver.sigterm import Stop
from topd_ray.driver.step import StepInFlight
from topd_ray.driver.weight_sync import WeightSync
from topd_ray.evaluation import Accuracy
from topd_ray.messages import Prompt, StepReport
from topd_ray.records.receipts import StepReceipts
from topd_ray.records.timeline import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Which steps are begun ahead, and what happens after which step."""

    total_steps: int
    checkpoint_every: int
    max_staleness: int = 0
    evaluate_every: int = 0
    """0: never during training."""
    follow_every: int = 0
    """0: the teacher never takes the student's weights."""
    samples: bool = True
    """Whether the rollout engines need each step's weights for rollouts."""

    @classmethod
    def of(cls, config: Config, total_steps: int) -> "Schedule":
        """Return the schedule that a config asks for."""
        return cls(
            total_steps=total_steps,
            checkpoint_every=config.run.checkpoint_every,
            max_staleness=config.rollout.max_staleness,
            evaluate_every=config.evaluation.every,
            follow_every=config.teacher.follow_every,
            samples=config.objective.trajectory != "given",
        )

    def steps_to_begin(self, done: int, num_begun: int) -> range:
        """Return the numbers (from 0) of the steps that may begin after `done` steps.

        `num_begun` steps are under way already.
        """
        next_checkpoint = (done // self.checkpoint_every + 1) * self.checkpoint_every
        end = min(done + 1 + self.max_staleness, next_checkpoint, self.total_steps)
        return range(done + num_begun, end)

    def checkpoints(self, done: int) -> bool:
        """Return whether a checkpoint is written after `done` steps."""
        return done % self.checkpoint_every == 0 or done == self.total_steps

    def evaluates(self, done: int) -> bool:
        """Return whether held-out problems are answered after `done` steps."""
        due = self.evaluate_every > 0 and done % self.evaluate_every == 0
        return due and 0 < done < self.total_steps

    def follows(self, done: int) -> bool:
        """Return whether the teacher takes the student's weights after `done` steps."""
        return self.follow_every > 0 and done % self.follow_every == 0

    def publishes(self, done: int) -> bool:
        """Return whether an engine needs the weights of `done` steps."""
        return self.samples or self.evaluates(done) or done == self.total_steps


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """One optimizer step, and the load of weights before it."""

    step: StepInFlight
    prompts: Sequence[Prompt]
    report: StepReport
    receipts: StepReceipts
    sync_s: float
    """Seconds of publishing and loading weights since the step before."""
    sync_works: list[Work]
    evaluation_cpu_s: float
    """CPU seconds of this process in an evaluation since the step before.

    With `cluster.placement=inline` that is the whole evaluation.
    """


class LoopHooks:
    """What a user of the loop does around its steps; these defaults do nothing."""

    def put_back(self, prompts: Sequence[Prompt]) -> None:
        """Take back the prompts of a step that is abandoned, the newest step first."""

    async def finished(self, finished: FinishedStep) -> None:
        """Record a finished step; its weights are on their way."""

    def evaluated(self, step: int, accuracy: Accuracy) -> None:
        """Record the accuracy after `step` steps."""

    async def save(self) -> None:
        """Write a checkpoint."""


@dataclass(frozen=True, slots=True)
class _Begun:
    step: StepInFlight
    prompts: Sequence[Prompt]


class StepLoop:
    """Begins steps ahead, finishes them in order, publishes, evaluates, checkpoints.

    It owns its tasks: none runs on when `run` returns or raises.
    """

    def __init__(
        self,
        schedule: Schedule,
        pipeline: Pipeline,
        weight_sync: WeightSync,
        take_prompts: Callable[[], Sequence[Prompt]],
        *,
        fleet: Fleet,
        hooks: LoopHooks | None = None,
        problems: Sequence[Prompt] = (),
        step: int = 0,
        stop: Stop | None = None,
    ) -> None:
        """`take_prompts()` returns the prompts of the next step.

        `step`: optimizer steps done before; `problems`: asked where the schedule says.
        """
        self.step = step
        self._schedule = schedule
        self._pipeline = pipeline
        self._weight_sync = weight_sync
        self._take_prompts = take_prompts
        self._hooks = hooks or LoopHooks()
        self._fleet = fleet
        self._turns = pipeline.turns
        self._problems = problems
        self._stop = stop
        self._begun = deque[_Begun]()
        self._evaluation: asyncio.Task[Accuracy] | None = None
        self._evaluated_step = 0
        self._evaluation_cpu_s = 0.0

    async def run(self) -> None:
        """Do all steps; end early, at a step's end, where a stop is requested."""
        try:
            while not self._stopped() and (self._begun or self._steps_are_left()):
                await self._begin_ahead()
                if not await self._finish_first():
                    # First no chunk task may be left that could submit more to a rank.
                    await self._end_tasks()
                    await self._turns.leave_to("learner")
                    await self._fleet.learners.abandon_step()
                    break
            await self._report_evaluation()
            await self._weight_sync.done()
        finally:
            await self._end_tasks()

    def _stopped(self) -> bool:
        """Return whether to end: a stop is requested and no step is under way."""
        requested = self._stop is not None and self._stop.requested
        return requested and not self._begun

    def _steps_are_left(self) -> bool:
        return self.step < self._schedule.total_steps

    async def _begin_ahead(self) -> None:
        """Begin the next step, and as many ahead of it as may be stale."""
        if self._stop is not None and self._stop.requested:
            return
        await self._turns.to("rollout")
        for number in self._schedule.steps_to_begin(self.step, len(self._begun)):
            prompts = self._take_prompts()
            step = self._pipeline.begin(prompts, step=number, policy_version=self.step)
            self._begun.append(_Begun(step, prompts))
        # Submitted after the rollouts of these weights and before the next weights: the
        # answers are of version `self.step`, however many steps were begun ahead.
        if self._schedule.evaluates(self.step) and self._evaluated_step != self.step:
            self._evaluated_step = self.step
            # An inline call runs to its end here, and is no part of the step.
            began_cpu_s = time.process_time()
            self._evaluation = evaluate(self._fleet, self._problems)
            self._evaluation_cpu_s += time.process_time() - began_cpu_s

    async def _finish_first(self) -> bool:
        """Finish the oldest step; False where the grace period of a stop ended
        first.
        """
        first = self._begun[0]
        learn = self._pipeline.learn(first.step)
        learned = await (learn if self._stop is None else self._stop.unless_late(learn))
        if learned is None:
            return False
        report, receipts = await self._pipeline.update(first.step)
        self._begun.popleft()
        await self._report_evaluation()
        # Rollouts of a version have come, so its load has ended: this waits for none.
        version = max(receipt.policy_version for receipt in receipts.rollouts)
        sync_s, sync_works = await self._weight_sync.done(up_to=version)
        self.step = report.step
        sync_works += self._turns.works(self.step)
        if self._schedule.publishes(self.step):
            await self._weight_sync.publish(
                self.step, to_teachers=self._schedule.follows(self.step)
            )
        evaluation_cpu_s = self._evaluation_cpu_s
        self._evaluation_cpu_s = 0.0
        await self._hooks.finished(
            FinishedStep(
                first.step,
                first.prompts,
                report,
                receipts,
                sync_s,
                sync_works,
                evaluation_cpu_s,
            )
        )
        if self._schedule.checkpoints(self.step):
            await self._hooks.save()
        return True

    async def _report_evaluation(self) -> None:
        if self._evaluation is not None:
            accuracy = await self._evaluation
            self._evaluation = None
            self._hooks.evaluated(self._evaluated_step, accuracy)

    async def _end_tasks(self) -> None:
        """Cancel the evaluation and the steps under way; their prompts go back."""
        if self._evaluation is not None:
            self._evaluation.cancel()
            await asyncio.gather(self._evaluation, return_exceptions=True)
            self._evaluation = None
        while self._begun:
            begun = self._begun.pop()
            await self._pipeline.abandon(begun.step)
            self._hooks.put_back(begun.prompts)
        await self._weight_sync.cancel()
