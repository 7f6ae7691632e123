"""Steps of a run in virtual time: the real pipeline, simulated actors, predicted
seconds.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topd_ray.actors.calls import Caller
from topd_ray.actors.fleet import Fleet
from topd_ray.actors.replacement import Revival
from topd_ray.config import Config
from topd_ray.driver.ledger import Ledger
from topd_ray.driver.pipeline import Pipeline
from topd_ray.driver.step import OpenStep
from topd_ray.driver.weight_sync import Refit
from topd_ray.messages import Prompt
from topd_ray.records.timeline import Work, busy_and_waits
from topd_ray.simulate.clock import run_in_virtual_time
from topd_ray.simulate.handles import SimulatedActor
from topd_ray.simulate.machine import Device
from topd_ray.simulate.rates import Rates, Workload
from topd_ray.simulate.workers import (
    SimulatedLearner,
    SimulatedProber,
    SimulatedRollout,
    SimulatedTeacher,
    World,
)
from topd_ray.windows import RecentDistances

NUM_STEPS = 8
"""Steady steps that a prediction averages over; the first one, which draws its own
line, is left out.
"""
_LANES = {"score": "reading"}
"""A teacher reads beside what it writes."""
_NO_TOKENS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Means over the steady steps."""

    step_s: float
    student_tokens: float
    """A step."""
    busy: dict[str, float]
    """Share of its actors' time that each kind works."""
    works: tuple[Work, ...]
    """All steady steps, in virtual seconds."""

    @property
    def tokens_per_s(self) -> float:
        """Student tokens."""
        return self.student_tokens / self.step_s

    @property
    def bottleneck(self) -> str:
        """The kind that waits least."""
        return max(self.busy, key=lambda kind: self.busy[kind])


def simulate(
    config: Config,
    rates: Rates,
    workload: Workload,
    *,
    cores: int,
    steps: int = NUM_STEPS,
) -> Prediction:
    """What `steps` steady steps of the config would take; `cores`: of all its CPU-bound
    actors.
    """
    world = World(config=config, rates=rates, workload=workload)
    return run_in_virtual_time(_steps(world, cores, steps))


async def _steps(world: World, cores: int, steps: int) -> Prediction:
    fleet = _fleet(world, cores)
    deadline_s = world.config.cluster.call_deadline_s
    caller = Caller(start_deadline_s=deadline_s, call_deadline_s=deadline_s)
    refit = Refit(fleet, caller)
    pipeline = Pipeline(
        world.config,
        fleet,
        caller,
        Ledger(),
        RecentDistances(world.config.windows.divergence),
        Revival.none(fleet, caller),
    )
    now_s = asyncio.get_running_loop().time
    began_s, tokens = 0.0, 0
    per_step, begun = world.config.prompts.per_step, deque[OpenStep]()
    ahead = world.config.rollout.max_staleness
    warm_up = 1 + ahead  # steps until as many are under way as ever will be
    for done in range(steps + warm_up):
        if done == warm_up:
            began_s, tokens = now_s(), 0
        for number in range(done + len(begun), done + 1 + ahead):
            prompts = [_prompt(number * per_step + i) for i in range(per_step)]
            begun.append(pipeline.begin(prompts, step=number, policy_version=done))
        _, books = await pipeline.finish(begun.popleft())
        tokens += sum(one.num_tokens for one in books.rollouts)
        await refit.done()
        await refit.publish(done + 1)
    for left in begun:
        left.abandon()
    works = tuple(one for one in world.works if one.ended_s > began_s)
    shares = busy_and_waits(works, began_s=began_s, ended_s=now_s())
    return Prediction(
        step_s=(now_s() - began_s) / steps,
        student_tokens=tokens / steps,
        busy={
            name.removeprefix("busy/").removesuffix("_frac"): share
            for name, share in shares.items()
            if name.startswith("busy/")
        },
        works=works,
    )


def _prompt(position: int) -> Prompt:
    name = f"{position:08d}"
    return Prompt(
        prompt_id=name, position=position, token_ids_P=_NO_TOKENS, answer=None
    )


def _fleet(world: World, cores: int) -> Fleet:
    config, devices = world.config, _devices(world.config, cores)
    meeting = asyncio.Barrier(config.learner.num_ranks)

    def actors(
        kind: str, worker: type, count: int, *shared: object
    ) -> list[SimulatedActor]:
        return [
            SimulatedActor(
                worker(world, index, devices[kind][index], *shared),
                latency_s=world.rates.latency_s,
                lanes=_LANES,
            )
            for index in range(count)
        ]

    return Fleet(
        rollouts=actors("rollout", SimulatedRollout, config.rollout.num_engines),
        teachers=actors("teacher", SimulatedTeacher, config.teacher.num_engines),
        probers=actors("prober", SimulatedProber, config.num_probe_workers),
        learners=actors("learner", SimulatedLearner, config.learner.num_ranks, meeting),
    )


def _devices(config: Config, cores: int) -> dict[str, list[Device]]:
    """Where each actor runs: all CPU-bound ones on the cores, others on the first GPU
    with room.

    Learner ranks are placed first, so that what shares a GPU with one is its neighbour,
    as Ray's packing would have it. An engine split over several GPUs is one device.
    """
    asked = {
        "learner": [config.learner.gpus] * config.learner.num_ranks,
        "rollout": [config.rollout.engine.gpus] * config.rollout.num_engines,
        "teacher": [config.teacher.engine.gpus] * config.teacher.num_engines,
        "prober": [_probe_gpus(config)] * config.num_probe_workers,
    }
    host, gpus = Device(cores), list[tuple[float, Device]]()
    return {
        kind: [_placed(share, host, gpus) for share in shares]
        for kind, shares in asked.items()
    }


def _placed(share: float, host: Device, gpus: list[tuple[float, Device]]) -> Device:
    """`gpus`: room and device of each; one is added where none has room."""
    if share == 0:
        return host
    for index, (room, device) in enumerate(gpus):
        if room >= share - 1e-9:
            gpus[index] = room - share, device
            return device
    device = Device(1)
    gpus.append((max(0.0, 1 - share), device))
    return device


def _probe_gpus(config: Config) -> float:
    return config.probe_engine.gpus if config.probe_engine else 0.0


def num_gpus(config: Config) -> float:
    """GPUs of all actors of the config."""
    asked: Sequence[tuple[int, float]] = (
        (config.rollout.num_engines, config.rollout.engine.gpus),
        (config.teacher.num_engines, config.teacher.engine.gpus),
        (config.num_probe_workers, _probe_gpus(config)),
        (config.learner.num_ranks, config.learner.gpus),
    )
    return sum(count * gpus for count, gpus in asked)
