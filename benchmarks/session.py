"""One fleet of real actors on which steps of different kinds are run in turn.

A process a run would pay twenty seconds of start for each reading, and drift between
them. Here the same engines do the same prompts under one pipeline and then under
another; with a learning rate of next to nothing the student stays what it is, so where
`names` are alike, both see the same rollouts, token for token.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from world import STUDENT, TEACHER, make_model, make_prompts

from topd_ray.actors.calls import Calls
from topd_ray.actors.cluster import connected
from topd_ray.actors.fleet import open_fleet
from topd_ray.actors.handles import Handle
from topd_ray.actors.learner_group import LearnerActorGroup
from topd_ray.actors.protocols import Fleet
from topd_ray.actors.replacement import Replacement
from topd_ray.config import Config, parse_config
from topd_ray.driver.ledger import Ledger
from topd_ray.driver.loop import FinishedStep, LoopHooks, Schedule, StepLoop
from topd_ray.driver.pipeline import Pipeline
from topd_ray.driver.weight_sync import WeightSync
from topd_ray.inputs.prompts import load_source
from topd_ray.messages import Prompt
from topd_ray.records.metrics import step_metrics
from topd_ray.records.receipts import StepReceipts
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.timeline import Work, busy_and_waits
from topd_ray.windows import RecentDistances

ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_gib": 0.5,
    "max_num_seqs": 256,
    "cpus": 0.5,
}
THRESHOLD = 0.1
"""Distances that stand for earlier steps: no step waits for all of its probes."""


def session_config(folder: Path, sections: Mapping[str, Any]) -> Config:
    """A TOPD run on a random world made in `folder`; `sections` are merged over it."""
    values: dict[str, Any] = {
        "run": {"root": str(folder / "runs"), "name": "session", "steps": 100_000},
        "prompts": {
            "path": str(make_prompts(folder / "prompts.jsonl")),
            "max_tokens": 32,
        },
        "rollout": {"engine": ENGINE, "num_top": 16},
        "teacher": {
            "model": str(make_model(folder / "teacher", TEACHER, seed=1)),
            "engine": ENGINE,
        },
        "probe": {"cpus": 0.5},
        "learner": {
            "model": str(make_model(folder / "student", STUDENT, seed=2)),
            "dtype": "float32",
            "lr": 1e-12,
            "cpus": 0.5,
        },
        "cluster": {"object_store_gib": 0.5},
    }
    for section, fields in sections.items():
        values[section] = values.get(section, {}) | fields
    return parse_config(values, source="benchmark")


@dataclass(slots=True)
class TimedStep:
    """One finished step."""

    wall_s: float
    receipts: StepReceipts
    works: list[Work]
    """Of the step, and of the load of weights before it."""
    metrics: dict[str, float]


class _Timing(LoopHooks):
    """Times the steps of a loop, from the end of one to the end of the next."""

    def __init__(self) -> None:
        self.steps: list[TimedStep] = []
        self._last_ended_s = time.monotonic()

    async def finished(self, finished: FinishedStep) -> None:
        """Keep a step and its metrics."""
        began_s, self._last_ended_s = self._last_ended_s, time.monotonic()
        works = finished.receipts.works + finished.sync_works
        metrics = step_metrics(
            finished.report, finished.receipts, sync_s=finished.sync_s
        ) | busy_and_waits(works, began_s=began_s, ended_s=self._last_ended_s)
        wall_s = self._last_ended_s - began_s
        self.steps.append(TimedStep(wall_s, finished.receipts, works, dict(metrics)))


@dataclass(slots=True)
class Session:
    """An open fleet; `policy_version` counts its optimizer steps."""

    config: Config
    fleet: Fleet
    weight_sync: WeightSync
    prompts: list[Prompt]
    policy_version: int = 0

    async def steps(self, config: Config, count: int, *, names: int) -> list[TimedStep]:
        """So many steps of one kind, by the loop of a run.

        `config` is a variant that needs no other actors; `names` decides what is drawn.
        """
        recent = RecentDistances(config.windows.divergence, [THRESHOLD] * 100)
        timing = _Timing()
        number = names - 1

        def take_prompts() -> Sequence[Prompt]:
            nonlocal number
            number += 1
            return self._prompts_of(number)

        last = self.policy_version + count
        loop = StepLoop(
            Schedule(
                total_steps=last,
                checkpoint_every=last + 1,
                max_staleness=config.rollout.max_staleness,
                samples=config.objective.trajectory != "given",
            ),
            Pipeline(config, self.fleet, Ledger(), recent),
            self.weight_sync,
            take_prompts,
            fleet=self.fleet,
            hooks=timing,
            step=self.policy_version,
        )
        await loop.run()
        self.policy_version = loop.step
        return timing.steps

    def _prompts_of(self, number: int) -> list[Prompt]:
        """The same problems for each step, under other names: their draws differ."""
        size = len(self.prompts)
        return [
            replace(prompt, position=number * size + index)
            for index, prompt in enumerate(self.prompts)
        ]


def in_session(
    config: Config,
    work: Callable[[Session], Awaitable[Any]],
    *,
    cores: Mapping[str, int] | None,
) -> Any:
    """Start the fleet, do the work, end the fleet. `cores` pins kinds of actor."""
    return asyncio.run(_with_fleet(config, work, cores))


async def _with_fleet(
    config: Config,
    work: Callable[[Session], Awaitable[Any]],
    cores: Mapping[str, int] | None,
) -> Any:
    with connected(config):
        folder = RunFolder.create(config)
        async with open_fleet(
            config,
            folder,
            Calls.within(config.cluster),
            Replacement.never(),
            total_steps=100_000,
        ) as fleet:
            if cores:
                await _pin(fleet, cores)
            source, _ = load_source(
                config,
                student=Path(config.learner.model),
                teacher=Path(config.teacher_model),
            )
            prompts = source.take(config.prompts.per_step)
            return await work(Session(config, fleet, WeightSync(fleet), prompts))


async def _pin(fleet: Fleet, cores: Mapping[str, int]) -> None:
    """Bind every thread of an actor to one core."""
    for handle in [*fleet.rollouts, *fleet.teachers, *fleet.probers]:
        assert isinstance(handle, Handle)
        kind = handle.name.partition("[")[0]
        if kind in cores:
            await handle.pin(cores[kind])
    if "learner" in cores:
        assert isinstance(fleet.learners, LearnerActorGroup)
        await fleet.learners.pin(cores["learner"])
