"""Claim `driver_rate`: what the driver itself costs, with actors that answer at once.

The real Pipeline, Ledger and Calls over 64 actors of four kinds. First in one process,
where what is timed is the driver alone; then over Ray actors, where a message also
crosses processes. Calls a step at the paper's sizes come from the same fakes, its
seconds from the roofline.
"""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from measure import Claim, Ratio, save

from topd_ray.actors.calls import Calls
from topd_ray.actors.fleet import RayProcess
from topd_ray.actors.handles import (
    ProberActorHandle,
    RolloutActorHandle,
    TeacherActorHandle,
)
from topd_ray.actors.inline import InlineProcess
from topd_ray.actors.learner_group import LearnerActorGroup
from topd_ray.actors.process import Process
from topd_ray.actors.protocols import Fleet
from topd_ray.actors.replacement import Replacement
from topd_ray.actors.worker import Worker
from topd_ray.config import Config, load_config, parse_config
from topd_ray.driver.ledger import Ledger
from topd_ray.driver.loop import FinishedStep, LoopHooks, Schedule, StepLoop
from topd_ray.driver.pipeline import Pipeline
from topd_ray.driver.weight_sync import WeightSync
from topd_ray.messages import LossSums, Prompt, RolloutRequest, StepReport
from topd_ray.records.receipts import (
    ContinueReceipt,
    LearnReceipt,
    ProbeReceipt,
    RolloutReceipt,
    ScoreReceipt,
    Span,
)
from topd_ray.simulate.roofline import Hardware, assumed_workload, roofline_rates
from topd_ray.simulate.simulation import simulate
from topd_ray.windows import RecentDistances

PAPER = Path("configs/qwen3-30b-a3b-to-4b-4xh100.yaml")
RUNS = 5
ROLLOUTS_A_RUN = 10_000
ROLLOUTS_IN_ALL = 100_000
NUM_CANDIDATES = 218
"""Of a rollout, in the paper."""
GOAL = 0.05
FLAT_BYTES = 8.0
"""A rollout: less than one pointer kept of each."""


@dataclass(frozen=True, slots=True)
class Size:
    """Actors of each kind and what a step brings."""

    engines: int
    teachers: int
    probers: int
    ranks: int
    prompts: int
    chunk: int

    @property
    def actors(self) -> int:
        """Of all kinds."""
        return self.engines + self.teachers + self.probers + self.ranks

    @property
    def config(self) -> Config:
        """A run of this size."""
        return parse_config(
            {
                "prompts": {"path": "none", "per_step": self.prompts},
                "teacher": {"model": "none", "num_engines": self.teachers},
                "learner": {"model": "none", "num_ranks": self.ranks},
                "rollout": {"num_engines": self.engines, "chunk_size": self.chunk},
                "probe": {"num_workers": self.probers},
                "cluster": {"max_chunks_in_flight": 2 * self.engines},
            },
            source="bench_driver",
        )


LARGE = Size(engines=16, teachers=16, probers=16, ranks=16, prompts=64, chunk=16)
SMALL = Size(engines=2, teachers=2, probers=2, ranks=2, prompts=8, chunk=4)


NO_TIME = Span(0.0, 0.0)


class FakeRollout(Worker):
    """Sends its chunks at once."""

    def __init__(self, size: Size) -> None:
        super().__init__(None)
        self._chunk = size.chunk

    def roll_out(
        self,
        requests: Sequence[RolloutRequest],
        policy_version: int,
        done: frozenset[str],
        *_: Any,
    ) -> Iterator[Any]:
        """Yield chunks of names and their receipts in turn; nothing is cut."""
        names = [r.rollout_id for r in requests if r.rollout_id not in done]
        for first in range(0, len(names), self._chunk):
            chunk = tuple(names[first : first + self._chunk])
            yield chunk
            yield RolloutReceipt(
                rollout_ids=chunk,
                policy_version=policy_version,
                num_tokens=len(chunk),
                num_truncated=0,
                entropy_sum=1.0,
                span=NO_TIME,
            )

    def update(self, *_: Any) -> Span:
        """Load nothing."""
        return NO_TIME


class FakeTeacher(Worker):
    """Finds the paper's number of candidates in every rollout."""

    def __init__(self, size: Size) -> None:
        del size
        super().__init__(None)

    def score(self, chunk: tuple[str, ...]) -> tuple[Any, ...]:
        """Return names in place of scored rollouts and candidates."""
        receipt = ScoreReceipt(
            num_tokens=1,
            num_sequence_tokens=(1,) * len(chunk),
            num_candidates=NUM_CANDIDATES * len(chunk),
            loss_sum=0.0,
            span=NO_TIME,
        )
        return (*chunk, chunk, receipt)

    def continue_from(self, chunk: tuple[str, ...]) -> tuple[Any, ContinueReceipt]:
        """Return names in place of windows."""
        receipt = ContinueReceipt(
            num_tokens=1, num_prefix_tokens=1, num_cached_tokens=1, span=NO_TIME
        )
        return chunk, receipt


class FakeProber(Worker):
    """Finds a distance for every candidate."""

    def __init__(self, size: Size) -> None:
        del size
        super().__init__(None)

    def probe(self, chunk: tuple[str, ...], *_: Any) -> tuple[Any, ...]:
        """Return names in place of probed windows."""
        values = np.linspace(0, 1, NUM_CANDIDATES * len(chunk))
        distances = tuple(float(d) for d in values)
        receipt = ProbeReceipt(
            distances=distances,
            threshold_distances=distances,
            num_windows=len(distances),
            num_unconverged=0,
            span=NO_TIME,
        )
        return (*chunk, receipt)


class FakeLearner(Worker):
    """Counts its steps."""

    def __init__(self, size: Size) -> None:
        del size
        super().__init__(None)
        self._steps = 0

    def accumulate(self, *_: Any) -> LearnReceipt:
        """Learn nothing."""
        return LearnReceipt(sums=LossSums(num_tokens=1), num_divergent=0, span=NO_TIME)

    def publish(self) -> Iterator[str]:
        """Yield one bucket."""
        yield "weights"

    def step(self, skip: bool) -> StepReport:
        """Return the next version."""
        self._steps += 1
        return StepReport(
            step=self._steps,
            policy_version=self._steps,
            loss=0.0,
            loss_opd=0.0,
            loss_traj=0.0,
            rollout_kl=0.0,
            grad_norm=0.0,
            lr=0.0,
            num_tokens=1,
            num_window_positions=0,
            skipped=skip,
        )


def fleet(size: Size, calls: Calls, *, over_ray: bool) -> Fleet:
    """Return real handles of fakes, in this process or in actors of Ray."""

    def starter(worker: Callable[[Size], Worker]) -> Callable[[], Process]:
        if over_ray:
            return lambda: RayProcess(worker, {"num_cpus": 0.01}, size)
        return lambda: InlineProcess(worker(size))

    never = Replacement.never()
    return Fleet(
        rollouts=[
            RolloutActorHandle(
                f"rollout[{i}]", starter(FakeRollout), calls, never, replaceable=True
            )
            for i in range(size.engines)
        ],
        teachers=[
            TeacherActorHandle(f"teacher[{i}]", starter(FakeTeacher), calls, never)
            for i in range(size.teachers)
        ],
        probers=[
            ProberActorHandle(f"prober[{i}]", starter(FakeProber), calls, never)
            for i in range(size.probers)
        ],
        learners=LearnerActorGroup(
            [starter(FakeLearner)() for _ in range(size.ranks)], calls
        ),
    )


class _Messages(LoopHooks):
    """Counts the calls and chunks of the steps that end."""

    def __init__(self) -> None:
        self.num_messages = 0

    async def finished(self, finished: FinishedStep) -> None:
        """Count a step's messages: a chunk or a call, answered."""
        receipts = finished.receipts
        self.num_messages += len(receipts.rollouts) + len(receipts.scores)
        self.num_messages += len(receipts.continued) + len(receipts.probes)
        self.num_messages += len(receipts.learned) + len(finished.sync_works)
        steps = [work for work in receipts.works if work.what == "step"]
        self.num_messages += len(steps)


class Driver:
    """The loop of a run over fakes; it goes on from where it was left."""

    def __init__(self, size: Size, *, over_ray: bool = False) -> None:
        self._size = size
        self._step = 0
        self._messages = _Messages()
        calls = Calls(start_deadline_s=60.0, call_deadline_s=60.0)
        # One event loop: the queues of the pools are bound to it.
        self._runner = asyncio.Runner()
        self._fleet = self._runner.run(self._open(calls, over_ray))
        self._pipeline = Pipeline(
            size.config,
            self._fleet,
            Ledger(),
            RecentDistances(size.config.windows.divergence),
        )
        self._weight_sync = WeightSync(self._fleet)
        self._num_taken = 0

    @property
    def num_messages(self) -> int:
        """Messages of all steps so far."""
        return self._messages.num_messages

    def go(self, rollouts: int) -> None:
        """Do so many rollouts, in whole steps."""
        a_step = self._size.prompts * self._size.config.rollout.samples_per_prompt
        last = self._step + -(-rollouts // a_step)
        loop = StepLoop(
            Schedule(total_steps=last, checkpoint_every=last + 1),
            self._pipeline,
            self._weight_sync,
            self._take_prompts,
            fleet=self._fleet,
            hooks=self._messages,
            step=self._step,
        )
        self._runner.run(loop.run())
        self._step = last

    async def _open(self, calls: Calls, over_ray: bool) -> Fleet:
        return fleet(self._size, calls, over_ray=over_ray)

    def _take_prompts(self) -> list[Prompt]:
        first = self._num_taken
        self._num_taken += self._size.prompts
        return [_prompt(position) for position in range(first, self._num_taken)]


def _prompt(position: int) -> Prompt:
    ids_P = np.zeros(0, np.int32)
    return Prompt(
        prompt_id=f"{position:08d}", position=position, token_ids_P=ids_P, answer=None
    )


def rate(driver: Driver, rollouts: int) -> Ratio:
    """Messages per second of the driver's own CPU time, in runs after one that warms
    up.
    """
    driver.go(rollouts // 10)
    values = []
    for _ in range(RUNS):
        before, start = driver.num_messages, time.process_time()
        driver.go(rollouts)
        values.append((driver.num_messages - before) / (time.process_time() - start))
    return Ratio(tuple(values))


def growth() -> tuple[float, float]:
    """Bytes of Python objects and resident bytes, a rollout, after the first tenth of
    them.
    """
    driver = Driver(LARGE)
    tracemalloc.start()
    driver.go(ROLLOUTS_IN_ALL // 10)
    objects, resident = _held()
    driver.go(ROLLOUTS_IN_ALL - ROLLOUTS_IN_ALL // 10)
    later = _held()
    tracemalloc.stop()
    counted = ROLLOUTS_IN_ALL * 0.9
    return (later[0] - objects) / counted, (later[1] - resident) / counted


def _held() -> tuple[int, int]:
    gc.collect()
    return tracemalloc.get_traced_memory()[0], psutil.Process().memory_info().rss


def paper_step() -> tuple[float, int]:
    """Seconds of the paper's OPD step by the roofline, and messages of its TOPD step.

    The shorter step and the greater number of messages: the driver's worst case.
    """
    opd = load_config(PAPER, ["run.method=opd"])
    rates, workload = roofline_rates(opd, Hardware()), assumed_workload(opd)
    config = load_config(PAPER)
    size = Size(
        engines=config.rollout.num_engines,
        teachers=config.teacher.num_engines,
        probers=config.num_probe_workers,
        ranks=config.learner.num_ranks,
        prompts=config.prompts.per_step,
        chunk=config.rollout.chunk_size,
    )
    driver = Driver(size)
    driver.go(1)
    return simulate(opd, rates, workload, cores=64).step_s, driver.num_messages


def over_ray() -> Ratio:
    """Messages a second between a driver and actors in processes of their own."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
    )
    try:
        return rate(Driver(SMALL, over_ray=True), 640)
    finally:
        ray.shutdown()


def main() -> None:
    """Measure and leave the claim."""
    alone, objects_resident = rate(Driver(LARGE), ROLLOUTS_A_RUN), growth()
    real = over_ray()
    step_s, messages = paper_step()
    share = messages / real.median / step_s
    objects, resident = objects_resident
    flat = objects < FLAT_BYTES
    large = LARGE.ranks + 4  # chunk, score, continue, probe, and each rank
    save(
        Claim(
            name="driver_rate",
            claim=(
                f"driver: messages/s with fake engines, {LARGE.actors} actors; memory"
                f" flat over {ROLLOUTS_IN_ALL:,} rollouts"
            ),
            against="the paper's step",
            goal=f"driver <= {GOAL:.0%} of a step at the paper's sizes; memory flat",
            figure=(
                f"{alone} messages/s of driver CPU; {share:.3%} of a step; "
                f"{objects:+.2f} bytes of objects a rollout"
            ),
            met=share <= GOAL and flat,
            setting=(
                f"Pipeline, Ledger and Calls over {LARGE.actors} actors that answer at"
                f" once, {LARGE.prompts * 4} rollouts a step in chunks of"
                f" {LARGE.chunk}, {NUM_CANDIDATES} distances a rollout; a message is a"
                " call or a chunk, answered; seconds are CPU time of the driver's"
                f" process. The paper's step: {messages} messages in {step_s:.1f} s"
                " (OPD by the roofline on 4 x H100, the shortest step), at the rate"
                " over Ray"
            ),
            details=[
                {
                    "actors": f"{LARGE.actors}, in the driver's process",
                    "messages/s": str(alone),
                },
                {"actors": f"{SMALL.actors}, Ray processes", "messages/s": str(real)},
            ],
            words=(
                f"Over {ROLLOUTS_IN_ALL:,} rollouts, after the first tenth:"
                f" {objects:+.2f} bytes of Python objects and {resident:+.1f} resident"
                f" bytes a rollout. With {LARGE.ranks} ranks a chunk is {large}"
                " messages: each rank is asked for each chunk."
            ),
        )
    )


if __name__ == "__main__":
    main()
