"""`topd replay`: a skipped step again, rollout by rollout, to see which of them made it
go wrong.

The same teacher, probes and learner as in the run, on the student as the step found it.
Each rollout is an optimizer step of its own with a learning rate of next to nothing, so
that it has a gradient norm of its own and the weights stay what they are.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from topd_ray.actors.calls import Caller
from topd_ray.actors.fleet import Fleet, connected, spawn
from topd_ray.config import Config
from topd_ray.errors import UserError
from topd_ray.inputs.paths import with_absolute_paths
from topd_ray.messages import Rollout, StepReport
from topd_ray.records.bad_step import STUDENT, BadStep, read_dump
from topd_ray.records.run_folder import RunFolder

_NO_LR = 1e-30


@dataclass(frozen=True, slots=True)
class Replayed:
    """One rollout's part in a step."""

    rollout: Rollout
    report: StepReport

    @property
    def is_finite(self) -> bool:
        """Whether its loss and its gradient are."""
        return not self.report.skipped


def replay(folder: Path) -> list[Replayed]:
    """Do it, print it. Raises UserError where the folder is no dump of a run."""
    folder = folder.absolute()
    step, rollouts = read_dump(folder)
    _, config = RunFolder.existing(folder.parents[1])
    config = with_absolute_paths(config)
    if config.teacher.source == "student" and config.teacher.follow_every:
        raise UserError(
            f"{folder}: the teacher of this run follows the student"
            " (teacher.follow_every); a dump holds the student only"
        )
    with connected(config):
        replayed = asyncio.run(
            _replayed(_for_replay(config, folder), folder, step, rollouts)
        )
    _print(step, replayed)
    return replayed


def _for_replay(config: Config, folder: Path) -> Config:
    """The run's config, from the dump's student, with one rank that learns nothing."""
    learner = {
        "model": str(folder / STUDENT),
        "revision": None,
        "num_ranks": 1,
        "lr": _NO_LR,
        "weight_decay": 0.0,
    }
    # self-distillation: the teacher is the student of the start
    teacher = {
        "model": config.teacher_model,
        "revision": config.teacher_revision,
        "source": "model",
    }
    return config.model_copy(
        update={
            "learner": config.learner.model_copy(update=learner),
            "teacher": config.teacher.model_copy(update=teacher),
            "rollout": config.rollout.model_copy(
                update={"num_engines": 1, "max_staleness": 0}
            ),
        }
    )


async def _replayed(
    config: Config, folder: Path, step: BadStep, rollouts: Sequence[Rollout]
) -> list[Replayed]:
    caller = Caller(
        start_deadline_s=config.cluster.start_deadline_s,
        call_deadline_s=config.cluster.call_deadline_s,
    )
    fleet = await spawn(config, RunFolder(folder), caller, total_steps=len(rollouts))
    try:
        return [
            Replayed(
                rollout, await _alone(config, fleet, caller, step, rollout, version)
            )
            for version, rollout in enumerate(rollouts)
        ]
    finally:
        fleet.kill()


async def _alone(
    config: Config,
    fleet: Fleet,
    caller: Caller,
    step: BadStep,
    rollout: Rollout,
    version: int,
) -> StepReport:
    """One rollout through teacher, probe and learner, whose `policy_version` counts the
    steps.
    """
    teacher, learner = fleet.teachers[0], fleet.learners[0]
    chunk = [replace(rollout, policy_version=version)]
    scored, found, receipt = teacher.score.options(num_returns=3).remote(chunk)
    await caller.call("teacher[0]", "score", receipt)
    probes: Any = None
    if config.uses_probes:
        probes = await _probes(config, fleet, caller, found)
    line = math.inf if step.threshold is None else step.threshold
    await caller.call(
        "learner[0]", "accumulate", learner.accumulate.remote(scored, probes, line)
    )
    report: StepReport = await caller.call("learner[0]", "step", learner.step.remote())
    return report


async def _probes(config: Config, fleet: Fleet, caller: Caller, found: Any) -> Any:
    decoder, fresh = (fleet.probers if config.probe_engine else fleet.teachers)[0], None
    if config.probe.student == "resample":
        engine = fleet.rollouts[0]
        fresh, receipt = engine.resample.options(num_returns=2).remote(
            found, policy_version=0
        )
        await caller.call("rollout[0]", "resample", receipt)
    windows, receipt = decoder.continue_from.options(num_returns=2).remote(found)
    await caller.call("teacher", "continue_from", receipt)
    probes, receipt = (
        fleet.probers[0].probe.options(num_returns=2).remote(found, windows, fresh)
    )
    await caller.call("prober[0]", "probe", receipt)
    return probes


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
    for one in replayed:
        report = one.report
        table.add_row(
            one.rollout.rollout_id,
            f"{report.num_tokens:,}",
            *(
                f"{value:.4g}"
                for value in (
                    report.loss,
                    report.loss_opd,
                    report.loss_traj,
                    report.rollout_kl,
                    report.grad_norm,
                )
            ),
            one.rollout.finish_reason,
            "" if one.is_finite else "not finite",
        )
    console.print(table)
