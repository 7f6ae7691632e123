"""`topd replay`: a skipped step again, rollout by rollout, to find the one at fault.

The same pipeline as in the run, from the student that the step started with. Each
rollout is an optimizer step for itself, with a learning rate of next to nothing, so
that it has a gradient norm and the weights stay what they are.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from topd_ray.actors.calls import Calls
from topd_ray.actors.cluster import connected
from topd_ray.actors.fleet import open_fleet, put
from topd_ray.actors.protocols import Fleet
from topd_ray.actors.replacement import Replacement
from topd_ray.actors.roles import RoleName
from topd_ray.config import Config
from topd_ray.driver.stages import Stages, rank_shares
from topd_ray.driver.step import Chunk, ChunkLog
from topd_ray.driver.turns import RoleTurns
from topd_ray.errors import UserError
from topd_ray.inputs.paths import with_absolute_paths
from topd_ray.inputs.turns import roles_by_turns
from topd_ray.messages import Rollout, StepReport
from topd_ray.records.bad_step import STUDENT, BadStep, read_dump
from topd_ray.records.receipts import RolloutReceipt, Span
from topd_ray.records.run_folder import RunFolder

_NO_LR = 1e-30
"""A learning rate that leaves every weight as it is, and is above 0."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One rollout's part in a step."""

    rollout: Rollout
    report: StepReport

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient of this rollout alone are finite."""
        return not self.report.skipped


def replay(folder: Path) -> list[Replayed]:
    """Do the step of a dump again and print it, a row a rollout.

    Raises UserError where the folder is no dump of a run.
    """
    folder = folder.absolute()
    step, rollouts = read_dump(folder)
    _, config = RunFolder.existing(folder.parents[1])
    config = with_absolute_paths(config)
    if config.teacher.source == "student" and config.teacher.follow_every:
        raise UserError(
            f"{folder}: the teacher of this run follows the student"
            " (teacher.follow_every); a dump holds the student only"
        )
    with connected(config) as placement:
        takes_turns = roles_by_turns(config, placement)
        config = _for_replay(config, folder)
        replayed = asyncio.run(_replay_all(config, folder, step, rollouts, takes_turns))
    _print(step, replayed)
    return replayed


def _for_replay(config: Config, folder: Path) -> Config:
    """Return the run's config, from the dump's student, with a rank that learns
    nothing.
    """
    learner = {
        "model": str(folder / STUDENT),
        "revision": None,
        "num_ranks": 1,
        "sequence_parallel": 1,
        "lr": _NO_LR,
        "weight_decay": 0.0,
    }
    # with self-distillation the teacher is the student of the start
    teacher = {
        "model": config.teacher_model,
        "revision": config.teacher_revision,
        "source": "model",
    }
    rollout = {"num_engines": 1, "max_staleness": 0}
    # The rollout that is asked about must not be left out.
    takeover = {"keep": "all"}
    return config.model_copy(
        update={
            "learner": config.learner.model_copy(update=learner),
            "teacher": config.teacher.model_copy(update=teacher),
            "rollout": config.rollout.model_copy(update=rollout),
            "takeover": config.takeover.model_copy(update=takeover),
        }
    )


async def _replay_all(
    config: Config,
    folder: Path,
    step: BadStep,
    rollouts: Sequence[Rollout],
    takes_turns: frozenset[RoleName],
) -> list[Replayed]:
    replayed = []
    async with open_fleet(
        config,
        RunFolder(folder),
        Calls.within(config.cluster),
        Replacement.never(),
        total_steps=len(rollouts),
        takes_turns=takes_turns,
    ) as fleet:
        stages = Stages(config, fleet)
        turns = RoleTurns(fleet)
        for version, rollout in enumerate(rollouts):
            report = await _replay_one(
                config, fleet, stages, turns, step, rollout, version
            )
            replayed.append(Replayed(rollout, report))
    return replayed


async def _replay_one(
    config: Config,
    fleet: Fleet,
    stages: Stages,
    turns: RoleTurns,
    step: BadStep,
    rollout: Rollout,
    version: int,
) -> StepReport:
    """Take one rollout through all stages; `version` counts the learner's steps."""
    log = ChunkLog(step.step, None, [])
    chunk = Chunk(
        turn=0,
        rollouts=put(config, [replace(rollout, policy_version=version)]),
        rollout_ids=(rollout.rollout_id,),
        log=log,
        rollout=_receipt(rollout),
    )
    await turns.to("teacher")
    teacher, candidates = await stages.score(chunk)
    if config.uses_probes:
        await stages.probe(chunk, teacher, candidates, fleet.rollouts[0])
    # a step that was to take its threshold from its own probes has none to judge by
    threshold = math.inf if step.threshold is None else step.threshold
    if config.uses_takeovers:
        await stages.take_over(chunk, teacher, candidates, {}, threshold, {})
    await turns.to("learner")
    shares = rank_shares([chunk], num_ranks=1)
    await fleet.learners.accumulate(shares, threshold, log)
    return await fleet.learners.step(skip=False, log=log)


def _receipt(rollout: Rollout) -> RolloutReceipt:
    return RolloutReceipt(
        rollout_ids=(rollout.rollout_id,),
        policy_version=0,  # the engines hold the dump's student, and never another
        num_tokens=len(rollout.response_ids_N),
        num_truncated=int(rollout.finish_reason == "length"),
        entropy_sum=0.0,
        span=Span(0.0, 0.0),
    )


def _print(step: BadStep, replayed: Sequence[Replayed]) -> None:
    console = Console()
    for complaint in step.complaints:
        console.print(f"step {step.step}: {complaint}", markup=False, highlight=False)
    table = Table(title=f"step {step.step} again, {len(replayed)} rollouts")
    table.add_column("rollout")
    for column in ("tokens", "loss", "opd", "traj", "rollout KL", "gradient norm"):
        table.add_column(column, justify="right")
    table.add_column("end")
    table.add_column("")
    for part in replayed:
        report = part.report
        values = (
            report.loss,
            report.loss_opd,
            report.loss_traj,
            report.rollout_kl,
            report.grad_norm,
        )
        table.add_row(
            part.rollout.rollout_id,
            f"{report.num_tokens:,}",
            *(f"{value:.4g}" for value in values),
            part.rollout.finish_reason,
            "" if part.is_finite else "not finite",
        )
    console.print(table)
