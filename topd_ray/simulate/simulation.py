"""Steps of a run in virtual time: the real loop, simulated actors, predicted
seconds.
"""

import asyncio
from dataclasses import dataclass

import numpy as np

from topd_ray.actors.placement import assumed_placement
from topd_ray.actors.protocols import Fleet
from topd_ray.actors.resources import resources_of, total_resources
from topd_ray.config import Config
from topd_ray.driver.ledger import Ledger
from topd_ray.driver.loop import FinishedStep, LoopHooks, Schedule, StepLoop
from topd_ray.driver.pipeline import Pipeline
from topd_ray.driver.turns import RoleTurns
from topd_ray.driver.weight_sync import WeightSync
from topd_ray.inputs.turns import roles_by_turns
from topd_ray.messages import Prompt
from topd_ray.records.timeline import Work, busy_and_waits
from topd_ray.simulate.clock import run_in_virtual_time
from topd_ray.simulate.handles import (
    SimulatedLearners,
    SimulatedProber,
    SimulatedRollout,
    SimulatedTeacher,
)
from topd_ray.simulate.machine import Device
from topd_ray.simulate.rates import Rates, Workload
from topd_ray.simulate.world import World
from topd_ray.windows import RecentDistances

NUM_STEPS = 8
"""Steady steps that a prediction averages over. The first step, which takes the
threshold from its own probes, is left out.
"""
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
    """Predict `steps` steady steps of a config.

    `cores` are shared by all its actors that have no GPU.
    """
    world = World(config=config, rates=rates, workload=workload)
    return run_in_virtual_time(_steps(world, cores, steps))


async def _steps(world: World, cores: int, steps: int) -> Prediction:
    config = world.config
    fleet = _fleet(world, cores)
    hooks = _Measurement(config, steps)
    schedule = Schedule(
        # steps begun ahead of the last measured one keep the engines as busy as ever
        total_steps=hooks.last_step + config.rollout.max_staleness,
        checkpoint_every=config.run.checkpoint_every,
        max_staleness=config.rollout.max_staleness,
        samples=config.objective.trajectory != "given",
    )
    recent = RecentDistances(config.threshold_rule)
    turns = RoleTurns(fleet)
    pipeline = Pipeline(config, fleet, Ledger(), recent, turns)
    loop = StepLoop(
        schedule,
        pipeline,
        WeightSync(fleet, turns=turns),
        hooks.take_prompts,
        fleet=fleet,
        hooks=hooks,
    )
    await loop.run()
    return hooks.prediction(steps)


class _Measurement(LoopHooks):
    """Measures the steps after those in which the pipeline fills."""

    def __init__(self, config: Config, steps: int) -> None:
        self._per_step = config.prompts.per_step
        # until as many steps are under way as ever will be
        self._warm_up = 1 + config.rollout.max_staleness
        self.last_step = self._warm_up + steps
        self._num_taken = 0
        self._num_tokens = 0
        self._works: list[Work] = []
        self._began_s = 0.0
        self._ended_s = 0.0

    def take_prompts(self) -> list[Prompt]:
        """Return prompts that no step has had."""
        first = self._num_taken
        self._num_taken += self._per_step
        return [_prompt(position) for position in range(first, self._num_taken)]

    async def finished(self, finished: FinishedStep) -> None:
        """Count a step that is measured."""
        step = finished.report.step
        if step > self.last_step:
            return
        self._ended_s = asyncio.get_running_loop().time()
        self._works += finished.receipts.works + finished.sync_works
        if step == self._warm_up:
            self._began_s = self._ended_s
        elif step > self._warm_up:
            receipts = finished.receipts.rollouts
            self._num_tokens += sum(receipt.num_tokens for receipt in receipts)

    def prediction(self, steps: int) -> Prediction:
        """Return the means over the measured steps."""
        works = tuple(work for work in self._works if work.ended_s > self._began_s)
        shares = busy_and_waits(works, began_s=self._began_s, ended_s=self._ended_s)
        busy = {
            name.removeprefix("busy/").removesuffix("_frac"): share
            for name, share in shares.items()
            if name.startswith("busy/")
        }
        return Prediction(
            step_s=(self._ended_s - self._began_s) / steps,
            student_tokens=self._num_tokens / steps,
            busy=busy,
            works=works,
        )


def _prompt(position: int) -> Prompt:
    name = f"{position:08d}"
    return Prompt(
        prompt_id=name, position=position, token_ids_P=_NO_TOKENS, answer=None
    )


def _fleet(world: World, cores: int) -> Fleet:
    devices = _devices(world.config, cores)
    return Fleet(
        rollouts=[
            SimulatedRollout(world, index, device)
            for index, device in enumerate(devices["rollout"])
        ],
        teachers=[
            SimulatedTeacher(world, index, device)
            for index, device in enumerate(devices["teacher"])
        ],
        probers=[
            SimulatedProber(world, index, device)
            for index, device in enumerate(devices["prober"])
        ],
        learners=SimulatedLearners(world, devices["learner"]),
        takes_turns=roles_by_turns(world.config, assumed_placement(world.config)),
    )


def _devices(config: Config, cores: int) -> dict[str, list[Device]]:
    """Return the device of each actor of each kind.

    Actors without a GPU share the cores. An engine over several GPUs is on the first of
    them, where the actors that it shares them with are too.
    """
    host = Device(cores)
    gpus: dict[tuple[int, int], Device] = {}
    devices: dict[str, list[Device]] = {kind: [] for kind in resources_of(config)}
    for actor in assumed_placement(config).actors:
        device = host
        if actor.gpus:
            device = gpus.setdefault((actor.node, actor.gpus[0]), Device(1))
        devices[actor.kind].append(device)
    return devices


def num_gpus(config: Config) -> float:
    """Return the GPUs that all actors of a config take."""
    return total_resources(config)["GPU"]
