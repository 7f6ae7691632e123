"""A whole run: check, start the actors, step until done, keep checkpoints, export, sum
up.
"""

import asyncio
import math
import shutil
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from topd_ray.actors.calls import Caller
from topd_ray.actors.fleet import Fleet, connected, spawn
from topd_ray.actors.replacement import LOST, Budget, Revival
from topd_ray.config import Config
from topd_ray.driver.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from topd_ray.driver.evaluation import held_out_accuracy
from topd_ray.driver.health import suspects
from topd_ray.driver.pipeline import Pipeline
from topd_ray.driver.sigterm import Stop
from topd_ray.driver.state import Place
from topd_ray.driver.step import OpenStep, StepBooks
from topd_ray.driver.weight_sync import Refit
from topd_ray.errors import BadStepsError, LostObjectError, TopdError, UserError
from topd_ray.evaluation import Accuracy
from topd_ray.inputs.models import check_models
from topd_ray.inputs.prompts import load_problems, load_source
from topd_ray.messages import Prompt, StepReport
from topd_ray.prompts import DroppedPrompt, PromptSource
from topd_ray.records.bad_step import STUDENT, BadStep, write_step
from topd_ray.records.display import Display
from topd_ray.records.metrics import MetricsLog, step_metrics
from topd_ray.records.peak_memory import PeakMemory
from topd_ray.records.run_folder import RunFolder, write_json
from topd_ray.records.timeline import TraceWriter, Work, busy_and_waits

Summary = dict[str, Any]
_KEPT_DUMPS = 3


def train(config: Config, *, resume_if_there: bool = False) -> Summary | None:
    """Start a new run; returns what summary.json says, None where SIGTERM ended it
    before that.

    With `resume_if_there` a run of this name and config is continued, and a finished
    one left as it is: a job that is submitted again. Raises UserError before anything
    starts.
    """
    started = time.perf_counter()
    path = RunFolder.of(config).path
    if resume_if_there and RunFolder(path).config.is_file():
        folder, old = RunFolder.existing(path)
        if old != config:
            raise UserError(
                f"{path}: holds a run of another config; choose another run.name"
            )
        return None if folder.summary.is_file() else resume(path)
    data = _load_data(config)
    with connected(config):
        return _Run(config, RunFolder.create(config), data, None, started=started).go()


def resume(path: Path, checkpoint: str | None = None) -> Summary | None:
    """Continue a run from a checkpoint, by default its newest (its start where there is
    none).
    """
    started = time.perf_counter()
    folder, config = RunFolder.existing(path)
    if folder.summary.is_file():
        raise UserError(
            f"{folder.path}: this run is finished (summary.json); nothing to resume"
        )
    found = open_checkpoint(folder, checkpoint)
    data = _load_data(config)
    with connected(config):
        return _Run(config, folder, data, found, started=started).go()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """Everything read before the first actor starts."""

    source: PromptSource
    dropped: list[DroppedPrompt]
    problems: list[Prompt]


def _load_data(config: Config) -> _Data:
    student, teacher = check_models(config)
    source, dropped = load_source(config, student=student, teacher=teacher)
    problems = load_problems(
        config.evaluation, student, max_tokens=config.prompts.max_tokens
    )
    return _Data(source=source, dropped=dropped, problems=problems)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A step on its way, and the answers that are asked for beside it."""

    step: OpenStep
    prompt_ids: list[str]
    answers: asyncio.Task[Accuracy] | None


class _Run:
    """One session of a run, from whatever its checkpoint says."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        data: _Data,
        checkpoint: Checkpoint | None,
        *,
        started: float,
    ) -> None:
        """`started`: reading of the performance counter when the command began."""
        self._started, self._config, self._folder = started, config, folder
        self._source, self._dropped, self._problems = (
            data.source,
            data.dropped,
            data.problems,
        )
        self._take_up(checkpoint)
        self._earlier_s = self._place.totals.wall_s
        self._budget = Budget(config.cluster.max_failures)
        self._stop = Stop(config.cluster.grace_s)
        self._num_items = len(data.source) * config.prompts.epochs
        self._total_steps = config.run.steps or math.ceil(
            self._num_items / config.prompts.per_step
        )
        self._caller = Caller(
            start_deadline_s=config.cluster.start_deadline_s,
            call_deadline_s=config.cluster.call_deadline_s,
        )

    def _take_up(self, checkpoint: Checkpoint | None) -> None:
        """Be where a checkpoint says, or at the start."""
        self._checkpoint, self._place = checkpoint, Place.of(self._config, checkpoint)
        self._source.go_to(self._place.cursor)
        self._bad_in_a_row = 0
        self._last_ended_s, self._earlier_works = 0.0, list[Work]()

    @property
    def _step(self) -> int:
        return self._place.step

    def go(self) -> Summary | None:
        title = f"{self._config.run.method} {self._config.run.name}"
        with ExitStack() as stack:
            stack.enter_context(self._folder.locked())
            self._memory = stack.enter_context(PeakMemory())
            self._log = stack.enter_context(
                MetricsLog(self._config, self._folder, last_step=self._step)
            )
            self._display = stack.enter_context(
                Display(title, total_steps=self._total_steps, started=self._started)
            )
            self._trace = (
                stack.enter_context(TraceWriter(self._folder.trace))
                if self._config.run.trace
                else None
            )
            for drop in self._dropped:
                self._log.event("prompt_dropped", **asdict(drop))
            self._display.say(
                f"{len(self._source):,} prompts ({len(self._dropped)} dropped), "
                f"{self._total_steps} steps; run folder {self._folder.path}"
            )
            try:
                accuracies = asyncio.run(self._sessions())
            except TopdError as error:
                self._log.event("failed", step=self._step, error=str(error))
                self._display.say(
                    f"stopped after step {self._step}; `topd resume"
                    f" {self._folder.path}` goes on from the newest checkpoint"
                )
                raise
            if accuracies is None:
                self._say_stopped()
                return None
            summary = self._summary(*accuracies)
            write_json(self._folder.summary, summary)
            self._display.summary(summary)
            return summary

    def _say_stopping(self) -> None:
        self._log.event("stopping", step=self._step)
        self._display.say(self._stop.notice)

    def _say_stopped(self) -> None:
        kept = open_checkpoint(self._folder)
        where = kept.path.name if kept else "its start"
        self._log.event("stopped", step=self._step, checkpoint=where)
        self._display.say(
            f"stopped by SIGTERM after step {self._step}; `topd resume"
            f" {self._folder.path}` goes on from {where}"
        )

    async def _sessions(self) -> tuple[Accuracy, Accuracy] | None:
        """Sessions until one ends; accuracy before and after training, None where it
        was stopped.

        What no single actor can make good ends a session, and the next one starts from
        the newest checkpoint.
        """
        self._stop.listen(self._say_stopping)
        while True:
            try:
                return await self._stop.unless_late(self._session())
            except (*LOST, LostObjectError) as error:
                await self._budget.spend(error)
                reason = str(error).splitlines()[0]
                self._take_up(open_checkpoint(self._folder))
                self._log.go_back(self._step)
                ranks = [
                    f"learner[{rank}]" for rank in range(self._config.learner.num_ranks)
                ]
                last_calls = {who: self._caller.last(who) for who in ranks}
                self._log.event(
                    "went_back", step=self._step, error=reason, last_calls=last_calls
                )
                self._display.say(f"{reason}; going back to step {self._step}")

    async def _session(self) -> tuple[Accuracy, Accuracy] | None:
        self._display.say("starting actors")
        fleet = await self._timed(
            "start",
            spawn(
                self._config, self._folder, self._caller, total_steps=self._total_steps
            ),
        )
        try:
            return await self._train(fleet)
        finally:
            fleet.kill()

    async def _train(self, fleet: Fleet) -> tuple[Accuracy, Accuracy] | None:
        refit = Refit(fleet, self._caller)
        revival = Revival(self._caller, refit, self._budget, self._log.event)
        if self._checkpoint:
            await self._restore(fleet, refit, self._checkpoint.path)
        self._display.say("actors ready")
        place = self._place
        if place.before is None:
            place.before = await self._evaluate(fleet, revival, "before training")
        pipeline = Pipeline(
            self._config, fleet, self._caller, place.ledger, place.recent, revival
        )
        begun = deque[_Begun]()
        self._last_ended_s = time.time()
        try:
            while begun or (self._step < self._total_steps and not self._stop.asked):
                if not self._stop.asked:
                    self._begin_steps(pipeline, fleet, revival, begun)
                await self._finish_step(pipeline, fleet, refit, begun)
        finally:
            for one in begun:
                one.step.abandon()
        await refit.done()
        if self._step < self._total_steps:
            await self._save(fleet)
            return None
        after = await self._evaluate(fleet, revival, "after training")
        await self._ranks(fleet, "export", self._folder.export)
        return place.before, after

    def _begin_steps(
        self, pipeline: Pipeline, fleet: Fleet, revival: Revival, begun: deque[_Begun]
    ) -> None:
        """The next step, and as many ahead of it as may be stale.

        None beyond the next checkpoint: its rollouts would be of weights that nobody
        kept, and a resumed run could not make them again.
        """
        every = self._config.run.checkpoint_every
        checkpoint = (self._step // every + 1) * every
        ahead = self._step + 1 + self._config.rollout.max_staleness
        for number in range(
            self._step + len(begun), min(ahead, checkpoint, self._total_steps)
        ):
            prompts = self._source.take(self._num_prompts())
            step = pipeline.begin(prompts, step=number, policy_version=self._step)
            answers = (
                self._evaluated_beside(fleet, revival) if number == self._step else None
            )
            begun.append(
                _Begun(step, [prompt.prompt_id for prompt in prompts], answers)
            )

    def _num_prompts(self) -> int:
        count = self._config.prompts.per_step
        if (
            self._config.run.steps is None
        ):  # the last step of the last epoch may be a short one
            count = min(count, self._num_items - self._source.cursor)
        return count

    def _evaluated_beside(
        self, fleet: Fleet, revival: Revival
    ) -> asyncio.Task[Accuracy] | None:
        """The engines answer when their rollouts are out, while the step goes on
        without.
        """
        every = self._config.evaluation.every
        if not every or not self._step or self._step % every:
            return None
        return asyncio.ensure_future(held_out_accuracy(fleet, revival, self._problems))

    async def _finish_step(
        self, pipeline: Pipeline, fleet: Fleet, refit: Refit, begun: deque[_Begun]
    ) -> None:
        report, books = await pipeline.finish(begun[0].step)
        one = begun.popleft()
        if one.answers is not None:
            accuracy = self._note(await one.answers, f"at step {self._step}")
            self._log.event("evaluated", step=self._step, **asdict(accuracy))
        update_s, refitted = await refit.done()
        self._place.step = report.step
        if self._engines_decode_next:
            follow = self._config.teacher.follow_every
            await refit.publish(
                self._step, to_teachers=follow > 0 and self._step % follow == 0
            )
        self._book(report, books, fleet, refitted, update_s)
        await self._look_after(report, books, one, fleet)
        if (
            self._step % self._config.run.checkpoint_every == 0
            or self._step == self._total_steps
        ):
            await self._timed("checkpoint", self._save(fleet))

    def _book(
        self,
        report: StepReport,
        books: StepBooks,
        fleet: Fleet,
        refitted: list[Work],
        update_s: float,
    ) -> None:
        """A step's numbers, to wherever they are kept. It lasted from the end of the
        one before.
        """
        began_s, self._last_ended_s = self._last_ended_s, time.time()
        works = books.works + refitted
        metrics = step_metrics(report, books, update_s=update_s) | busy_and_waits(
            works + self._earlier_works,
            began_s=began_s,
            ended_s=self._last_ended_s,
            actors=fleet.names(),
        )
        metrics["step/wall_s"] = self._last_ended_s - began_s
        metrics["cluster/num_failures"] = self._budget.spent
        self._earlier_works = (
            works  # a step that was begun ahead reaches back into this one
        )
        self._place.totals.add_step(metrics)
        self._log.log(metrics)
        self._display.step(metrics)
        if self._trace:
            self._trace.add(works)

    async def _look_after(
        self, report: StepReport, books: StepBooks, begun: _Begun, fleet: Fleet
    ) -> None:
        """A skipped step is kept for `topd replay`; after too many in a row the run
        stops.
        """
        self._bad_in_a_row = self._bad_in_a_row + 1 if report.skipped else 0
        if not report.skipped:
            return
        why = books.complaints or ["gradient is not finite"]
        bad = BadStep(
            step=report.step,
            complaints=why,
            suspects=suspects(books),
            threshold=begun.step.threshold,
        )
        dump = await self._dumped(bad, begun.step, fleet)
        self._log.event(
            "step_skipped", **asdict(bad), prompt_ids=begun.prompt_ids, dump=dump.name
        )
        self._display.say(f"step {report.step} skipped: {why[0]}; `topd replay {dump}`")
        if self._bad_in_a_row >= self._config.health.max_bad_steps:
            raise BadStepsError(
                f"step {report.step}: {'; '.join(why)}; {self._bad_in_a_row} bad steps"
                f" in a row (health.max_bad_steps); rollouts {bad.suspects[:5]} of"
                f" prompts {begun.prompt_ids[:5]}; `topd replay {dump}` does the step"
                " again, rollout by rollout. Lower learner.lr, look at these prompts,"
                " or move the limit"
            )

    async def _dumped(self, bad: BadStep, step: OpenStep, fleet: Fleet) -> Path:
        """Rollouts and weights of a step; the newest few of such folders stay."""
        folder = self._folder.dumps / f"step_{bad.step}"
        payloads = [chunk.payload for chunk in step.chunks() if chunk.names]
        kept = fleet.learners[0].dump.remote(folder, *payloads)
        await self._caller.call("learner[0]", "dump", kept)
        await self._ranks(fleet, "export", folder / STUDENT)
        await asyncio.to_thread(write_step, folder, bad)
        by_age = sorted(
            self._folder.dumps.glob("step_*"), key=lambda path: path.stat().st_mtime
        )
        for old in by_age[:-_KEPT_DUMPS]:
            shutil.rmtree(old)
        return folder

    @property
    def _engines_decode_next(self) -> bool:
        """Whether anything asks the rollout engines for the weights of this step."""
        every = self._config.evaluation.every
        evaluated = self._step == self._total_steps or (
            every and self._step % every == 0
        )
        return self._config.objective.trajectory != "given" or bool(evaluated)

    async def _restore(self, fleet: Fleet, refit: Refit, path: Path) -> None:
        await self._ranks(fleet, "load", path)
        # the engines hold the student's folder, not the checkpoint
        await refit.publish(
            self._step, to_teachers=self._config.teacher.follow_every > 0
        )
        await refit.done()
        self._log.event("resumed", step=self._step, checkpoint=path.name)
        self._display.say(f"resumed from {path.name}")

    async def _save(self, fleet: Fleet) -> None:
        totals = replace(self._place.totals, wall_s=self._wall_s)
        books = replace(self._place, cursor=self._source.cursor, totals=totals)
        path = await save_checkpoint(
            self._folder,
            fleet.learners,
            self._caller,
            step=self._step,
            keep=self._config.run.keep_checkpoints,
            keep_every=self._config.run.keep_every,
            driver=books.state(),
        )
        self._log.event("checkpoint", step=self._step, path=path.name)

    @property
    def _wall_s(self) -> float:
        """Seconds of this session and of those before it, up to their checkpoints."""
        return self._earlier_s + time.perf_counter() - self._started

    async def _evaluate(self, fleet: Fleet, revival: Revival, when: str) -> Accuracy:
        start = time.perf_counter()
        accuracy = await held_out_accuracy(fleet, revival, self._problems)
        self._place.totals.add_seconds("evaluation", time.perf_counter() - start)
        return self._note(accuracy, when)

    def _note(self, accuracy: Accuracy, when: str) -> Accuracy:
        if accuracy.num_problems:
            low, high = accuracy.interval
            self._display.say(
                f"accuracy {when}: {accuracy.share:.1%} [{low:.1%}, {high:.1%}] "
                f"of {accuracy.num_problems}"
            )
        return accuracy

    async def _ranks(self, fleet: Fleet, what: str, *args: Any) -> None:
        await self._caller.all(
            [
                self._caller.call(
                    f"learner[{rank}]", what, getattr(actor, what).remote(*args)
                )
                for rank, actor in enumerate(fleet.learners)
            ]
        )

    async def _timed(self, stage: str, work: Any) -> Any:
        start = time.perf_counter()
        result = await work
        self._place.totals.add_seconds(stage, time.perf_counter() - start)
        return result

    def _summary(self, before: Accuracy, after: Accuracy) -> Summary:
        totals = self._place.totals
        return {
            "name": self._config.run.name,
            "method": self._config.run.method,
            "seed": self._config.run.seed,
            "steps": self._step,
            "accuracy_before": _finite(before.share),
            "accuracy_after": _finite(after.share),
            "accuracy_before_interval": [_finite(edge) for edge in before.interval],
            "accuracy_after_interval": [_finite(edge) for edge in after.interval],
            "num_eval": after.num_problems,
            "wall_s": round(self._wall_s, 3),
            "peak_rss_gb": round(self._memory.peak_gb, 3),
            "student_tokens": totals.student_tokens,
            "trained_tokens": totals.trained_tokens,
            "num_rollouts": self._place.ledger.num_dispatched,
            "num_dropped_prompts": len(self._dropped),
            "num_dropped_rollouts": dict(self._place.ledger.dropped),
            "num_candidates": totals.num_candidates,
            "num_divergent": totals.num_divergent,
            "num_skipped_steps": totals.skipped_steps,
            "num_failures": self._budget.spent,
            "stage_s": {
                stage: round(seconds, 3) for stage, seconds in totals.stage_s.items()
            },
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
