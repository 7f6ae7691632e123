"""A whole run: its sessions, one after the other, until it ends or is stopped.

train / resume ──> Run.go ──> session: start the fleet, train (training.py)
                                │ an actor is lost that has no replacement
                                └──> the next session, from the newest checkpoint
"""

import asyncio
import math
import time
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from topd_ray.actors.calls import Calls
from topd_ray.actors.cluster import connected
from topd_ray.actors.fleet import open_fleet
from topd_ray.actors.placement import Placement
from topd_ray.actors.replacement import LOST, FailureBudget, Replacement
from topd_ray.actors.roles import RoleName
from topd_ray.config import Config
from topd_ray.config.changes import Change, changes, refuse_unchangeable
from topd_ray.driver.checkpoint import Checkpoint, make_latest, open_checkpoint
from topd_ray.driver.last_report import leave_report
from topd_ray.driver.resuming import (
    changed_config,
    changed_inputs,
    is_extended,
    refuse_fewer_steps,
    refuse_finished,
)
from topd_ray.driver.sigterm import Stop
from topd_ray.driver.state import RunState
from topd_ray.driver.summary import Summary, summarize
from topd_ray.driver.training import Accuracies, RunContext, Training
from topd_ray.errors import (
    LostObjectError,
    PlacementError,
    TopdError,
    UserError,
    WeightsError,
    first_line,
)
from topd_ray.inputs.gpu_memory import gpu_memory, refuse_too_little_memory
from topd_ray.inputs.memory import memory_hint
from topd_ray.inputs.paths import refuse_passing_folder, with_absolute_paths
from topd_ray.inputs.run_inputs import RunInputs, load_inputs
from topd_ray.inputs.turns import roles_by_turns
from topd_ray.models.roles import with_pinned_revisions, with_revisions_of
from topd_ray.records.machine_output import Output
from topd_ray.records.run_folder import RunFolder, write_json
from topd_ray.records.run_log import RunLog
from topd_ray.records.trackers import refuse_missing_trackers


def train(
    config: Config, *, resume_if_there: bool = False, output: Output = "display"
) -> Summary | None:
    """Start a new run and return what its summary.json says.

    Returns None where SIGTERM ended the run before that. With `resume_if_there` a run
    of this name and config is continued, and a finished one is left as it is: a job
    that is submitted again. `output` is what stdout gets. Raises UserError, before
    anything starts, for a mistake of the user.
    """
    started_s = time.monotonic()
    refuse_passing_folder(config)
    config = with_absolute_paths(config)
    path = RunFolder.of(config).path
    if resume_if_there and RunFolder(path).config.is_file():
        folder, old = RunFolder.existing(path)
        config = with_revisions_of(config, old)
        changed = changes(old, config)
        refuse_unchangeable(
            changed,
            way_out=f"{path} holds that run; choose another run.name",
        )
        if folder.summary.is_file() and not is_extended(changed):
            return None
        return _resume(folder, config, changed, None, (), started_s, output)
    refuse_missing_trackers(config)
    inputs = load_inputs(config)
    config = with_pinned_revisions(config)
    # A config that its cluster refuses leaves no folder, so that its name stays free.
    with connected(config) as placement:
        takes_turns = _turns_that_fit(config, placement)
        folder = RunFolder.create(config)
        with folder.locked():
            return _Run(
                config, folder, inputs, None, started_s, output, takes_turns
            ).go()


def resume(
    path: Path | str,
    checkpoint: str | None = None,
    *,
    overrides: Sequence[str] = (),
    accept: Collection[str] = (),
    output: Output = "display",
) -> Summary | None:
    """Continue a run from a checkpoint, by default its newest, or from its start.

    Args:
        path: The run's folder.
        checkpoint: Name of a checkpoint, such as `step_20`.
        overrides: `section.key=value`, for fields that may change in a run in progress;
            the folder's config.yaml takes them. `run.steps` extends a finished run.
        accept: Fields of files (`prompts.path`, `teacher.model`) that may be others
            than those the checkpoint was made with.
        output: What stdout gets.

    Returns:
        What summary.json says; None where SIGTERM ended the run before that.

    Raises:
        UserError: The run is finished, is under way elsewhere, has no such checkpoint,
            may not change a field, or its files have changed.
    """
    started_s = time.monotonic()
    folder, config = RunFolder.existing(Path(path))
    config, changed = changed_config(folder, config, overrides)
    refuse_finished(folder, changed)
    return _resume(folder, config, changed, checkpoint, accept, started_s, output)


def _resume(
    folder: RunFolder,
    config: Config,
    changed: Sequence[Change],
    checkpoint: str | None,
    accept: Collection[str],
    started_s: float,
    output: Output,
) -> Summary | None:
    refuse_missing_trackers(config)
    # The lock first: what is read here must not change, and `latest` must not move
    # under a process that works on this run.
    with folder.locked():
        opened = open_checkpoint(folder, checkpoint)
        inputs = load_inputs(config)
        accepted = changed_inputs(opened, inputs.fingerprints, accept=accept)
        refuse_fewer_steps(
            folder,
            done=RunState.of(config, opened).step,
            total=_total_steps(config, inputs),
        )
        with connected(config) as placement:
            takes_turns = _turns_that_fit(config, placement)
            # Nothing of the run is touched before this line.
            if opened is not None:
                make_latest(folder, opened.path.name)
            if changed:
                folder.replace_config(config)
            run = _Run(config, folder, inputs, opened, started_s, output, takes_turns)
            run.note_changes(changed, accepted)
            return run.go()


def _turns_that_fit(config: Config, placement: Placement | None) -> frozenset[RoleName]:
    """Return the roles that take turns.

    Raises UserError where a GPU has too little memory, with turns or without.
    """
    takes_turns = roles_by_turns(config, placement)
    if placement is not None:
        memory = gpu_memory(config, placement, takes_turns)
        refuse_too_little_memory(config, memory)
    return takes_turns


def _num_items(config: Config, inputs: RunInputs) -> int:
    """Return the prompts of all epochs."""
    return len(inputs.source) * config.prompts.epochs


def _total_steps(config: Config, inputs: RunInputs) -> int:
    """Return the optimizer steps of the whole run."""
    num_steps = math.ceil(_num_items(config, inputs) / config.prompts.per_step)
    return config.run.steps or num_steps


class _Run:
    """The sessions of one process of a run."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        inputs: RunInputs,
        checkpoint: Checkpoint | None,
        started_s: float,
        output: Output,
        takes_turns: frozenset[RoleName],
    ) -> None:
        self._takes_turns = takes_turns
        state = RunState.of(config, checkpoint)
        total_steps = _total_steps(config, inputs)
        log = RunLog(
            config,
            folder,
            last_step=state.step,
            total_steps=total_steps,
            started_s=started_s,
            output=output,
        )
        self._checkpoint = checkpoint
        self._calls = Calls.within(
            config.cluster, lambda actor: memory_hint(config, actor)
        )
        self._context = RunContext(
            config=config,
            folder=folder,
            inputs=inputs,
            log=log,
            state=state,
            stop=Stop(config.cluster.grace_s),
            budget=FailureBudget(
                config.cluster.max_failures,
                window_steps=config.cluster.failure_window_steps,
            ),
            total_steps=total_steps,
            num_items=_num_items(config, inputs),
            started_s=started_s,
            earlier_s=state.totals.wall_s,
        )

    def note_changes(self, changed: Sequence[Change], accepted: Sequence[str]) -> None:
        """Write into events.jsonl what is not as it was before."""
        log = self._context.log
        for change in changed:
            log.event("config_changed", **change._asdict())
            log.say(f"changed: {change}")
        for name in accepted:
            log.event("input_accepted", name=name)
            log.say(f"accepted: {name} is another than before")

    def go(self) -> Summary | None:
        """Run sessions until one ends the run, and write its summary."""
        run = self._context
        with run.log:
            run.log.begins(len(run.inputs.source), run.inputs.dropped, run.total_steps)
            for note in run.inputs.notes:
                run.log.say(f"note: {note}")
            try:
                accuracies = asyncio.run(self._sessions())
            except TopdError as error:
                run.log.event("failed", step=run.state.step, error=str(error))
                self._say_failed(error)
                raise
            if accuracies is None:
                self._say_stopped()
                return None
            summary = summarize(run, accuracies)
            write_json(run.folder.summary, summary)
            run.log.summary(summary)
            leave_report(run.folder, run.log)
            return summary

    async def _sessions(self) -> Accuracies | None:
        """Run sessions until one ends; None where a stop ended it early.

        The loss of an actor that cannot be replaced ends a session, and the next one
        starts from the newest checkpoint.
        """
        run = self._context
        run.stop.listen(self._say_stopping)
        self._go_to(self._checkpoint)
        while True:
            try:
                return await self._session()
            except (*LOST, LostObjectError) as error:
                if run.stop.requested:  # the newest checkpoint is what stays
                    return None
                await run.budget.spend(error)
                self._go_to(open_checkpoint(run.folder))
                reason = first_line(error)
                num_ranks = run.config.learner.num_ranks
                ranks = [f"learner[{rank}]" for rank in range(num_ranks)]
                last_calls = {rank: self._calls.last(rank) for rank in ranks}
                run.log.go_back(run.state.step, reason, last_calls)

    def _go_to(self, checkpoint: Checkpoint | None) -> None:
        """Set the state to that of a checkpoint, or of the start."""
        run = self._context
        self._checkpoint = checkpoint
        run.state = RunState.of(run.config, checkpoint)
        run.inputs.source.go_to(run.state.cursor)

    async def _session(self) -> Accuracies | None:
        run = self._context
        run.log.say("starting actors")
        replacement = Replacement(run.budget, self._note_replacement)
        began_s = time.monotonic()
        async with AsyncExitStack() as stack:
            opening = open_fleet(
                run.config,
                run.folder,
                self._calls,
                replacement,
                total_steps=run.total_steps,
                takes_turns=self._takes_turns,
            )
            fleet = await run.stop.unless_late(stack.enter_async_context(opening))
            if fleet is None:
                return None
            run.state.totals.add_seconds("start", time.monotonic() - began_s)
            return await Training(run, fleet, self._checkpoint).go()

    def _note_replacement(self, actor: str, error: TopdError) -> None:
        self._context.log.event(
            "replaced",
            actor=actor,
            error=first_line(error),
            last_calls=self._calls.last(actor),
        )

    def _say_stopping(self) -> None:
        run = self._context
        run.log.event("stopping", step=run.state.step)
        run.log.say(run.stop.notice)

    def _say_failed(self, error: TopdError) -> None:
        run = self._context
        way_on = (
            # Models and config of a run folder stay as they are, so the error would be
            # met again.
            "a resumed run would fail in the same way; correct the cause and start"
            " another run"
            if isinstance(error, (UserError, WeightsError))
            and not isinstance(error, PlacementError)
            else f"`topd resume {run.folder.path}` goes on from {self._newest()}"
        )
        run.log.say(f"stopped after step {run.state.step}; {way_on}")

    def _newest(self) -> str:
        """Return the name of the newest checkpoint, or that there is none."""
        newest = open_checkpoint(self._context.folder)
        return newest.path.name if newest else "its start"

    def _say_stopped(self) -> None:
        run = self._context
        where = self._newest()
        run.log.event("stopped", step=run.state.step, checkpoint=where)
        run.log.say(
            f"stopped by SIGTERM after step {run.state.step}; `topd resume"
            f" {run.folder.path}` goes on from {where}"
        )
