"""One fleet of real actors on which steps of different kinds are run in turn.

A process a run would pay twenty seconds of start for each reading, and drift between
them. Here the same engines do the same prompts under one pipeline and then under
another; with a learning rate of next to nothing the student stays what it is, so where
`names` are alike, both see the same rollouts, token for token.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from world import STUDENT, TEACHER, make_model, make_prompts

from topd_ray.actors.calls import Caller
from topd_ray.actors.fleet import Fleet, connected, spawn
from topd_ray.actors.replacement import Revival
from topd_ray.config import Config, parse_config
from topd_ray.driver.ledger import Ledger
from topd_ray.driver.pipeline import Pipeline
from topd_ray.driver.step import StepBooks
from topd_ray.driver.weight_sync import Refit
from topd_ray.inputs.prompts import load_source
from topd_ray.messages import Prompt
from topd_ray.records.metrics import step_metrics
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
LINE = 0.1
"""Distances that stand for earlier steps, so that no step waits for all of its
probes.
"""


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
class Step:
    """One finished step."""

    wall_s: float
    books: StepBooks
    works: list[Work]
    """Of the step, and of the refit before it."""
    metrics: dict[str, float]


@dataclass(slots=True)
class Session:
    """An open fleet; `policy_version` counts its optimizer steps."""

    config: Config
    fleet: Fleet
    caller: Caller
    refit: Refit
    prompts: list[Prompt]
    policy_version: int = 0

    def pipeline(self, config: Config) -> Pipeline:
        """The driver's own, for a variant of the config that needs no other actors."""
        recent = RecentDistances(config.windows.divergence, [LINE] * 100)
        revival = Revival.none(self.fleet, self.caller)
        return Pipeline(config, self.fleet, self.caller, Ledger(), recent, revival)

    async def steps(self, config: Config, count: int, *, names: int) -> list[Step]:
        """So many steps of one kind, as `run.py` drives them; `names` decides what is
        drawn.
        """
        pipeline, begun, done = self.pipeline(config), [], list[Step]()
        first, last_ended_s = self.policy_version, time.time()
        for _ in range(count):
            ahead = self.policy_version + 1 + config.rollout.max_staleness
            for number in range(
                self.policy_version + len(begun), min(ahead, first + count)
            ):
                begun.append(
                    pipeline.begin(
                        self._prompts_of(names + number - first),
                        step=number,
                        policy_version=self.policy_version,
                    )
                )
            report, books = await pipeline.finish(begun.pop(0))
            update_s, refitted = await self.refit.done()
            self.policy_version = report.step
            await self.refit.publish(self.policy_version)
            began_s, last_ended_s = last_ended_s, time.time()
            metrics = step_metrics(report, books, update_s=update_s) | busy_and_waits(
                books.works + refitted, began_s=began_s, ended_s=last_ended_s
            )
            works = books.works + refitted
            done.append(Step(last_ended_s - began_s, books, works, dict(metrics)))
        await self.refit.done()
        return done

    def _prompts_of(self, number: int) -> list[Prompt]:
        """The same problems for each step, under names of their own: their draws
        differ.
        """
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
    """Start the fleet, do the work, end the fleet. `cores` pins kinds of actor
    (`teacher`: 1).
    """
    return asyncio.run(_with_fleet(config, work, cores))


async def _with_fleet(
    config: Config,
    work: Callable[[Session], Awaitable[Any]],
    cores: Mapping[str, int] | None,
) -> Any:
    with connected(config):
        folder = RunFolder.create(config)
        caller = Caller(
            start_deadline_s=config.cluster.start_deadline_s,
            call_deadline_s=config.cluster.call_deadline_s,
        )
        fleet = await spawn(config, folder, caller, total_steps=100_000)
        try:
            if cores:
                await _pin(fleet, cores)
            source, _ = load_source(
                config,
                student=Path(config.learner.model),
                teacher=Path(config.teacher_model),
            )
            session = Session(
                config,
                fleet,
                caller,
                Refit(fleet, caller),
                source.take(config.prompts.per_step),
            )
            return await work(session)
        finally:
            fleet.kill()


async def _pin(fleet: Fleet, cores: Mapping[str, int]) -> None:
    """Every thread of an actor onto one core."""
    kinds = {
        "rollout": fleet.rollouts,
        "teacher": fleet.teachers,
        "prober": fleet.probers,
        "learner": fleet.learners,
    }
    for kind, core in cores.items():
        for actor in kinds[kind]:
            await actor.__ray_call__.remote(_pin_process, core)


def _pin_process(_: Any, core: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})
