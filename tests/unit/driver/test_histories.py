"""Histories: results, deaths, silences, retries, checkpoints, crashes of the driver, in
any order.

The real pipeline, ledger, revival and books, in virtual time; only the actors are
fakes, since what is tested is who waits for whom at moments that nobody can arrange
with real ones.
"""

import asyncio
import json
import random
from collections import deque
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.make import prompt
from tests.unit.actors.test_replacement import DEAD, SILENT, mortal
from tests.unit.driver.fleet import FakeLearner, fleet
from tests.unit.driver.test_pipeline import config, random_delays
from topd_ray.actors.calls import Caller
from topd_ray.actors.replacement import LOST, Budget, Revival
from topd_ray.config import Config
from topd_ray.driver.checkpoint import Checkpoint
from topd_ray.driver.pipeline import Pipeline
from topd_ray.driver.state import Place
from topd_ray.driver.step import OpenStep
from topd_ray.driver.weight_sync import Refit
from topd_ray.messages import rollout_id
from topd_ray.simulate.clock import VirtualLoop, run_in_virtual_time

STEPS, PROMPTS = 3, 2
ROLLOUTS = [rollout_id(prompt(position), 0) for position in range(STEPS * PROMPTS)]
LONG_S = 3600.0
"""Of virtual time; a session that takes longer waits for somebody who never comes."""


class History:
    """One run, from its start to its end, over as many sessions as it takes."""

    def __init__(
        self, rng: random.Random, *, every: int, stale: int, share: float, crashes: int
    ):
        self.rng, self.every, self.share, self.crashes = rng, every, share, crashes
        self.config: Config = config(
            {
                "rollout": {
                    "samples_per_prompt": 1,
                    "chunk_size": 1,
                    "max_staleness": stale,
                },
                "run": {"checkpoint_every": every},
            }
        )
        self.learned = list[str]()
        self.kept: tuple[str, int] | None = None
        """The newest checkpoint: the driver's books, and how much was learned by
        then.
        """
        self.place = Place.of(self.config, None)

    def live(self, engines: int, teachers: int, probers: int) -> None:
        """Sessions until one gets to the end."""
        seed = self.rng.randrange(10**6)
        while not run_in_virtual_time(self.session(seed, (engines, teachers, probers))):
            self.take_up()

    def take_up(self) -> None:
        """What a new driver does: the newest checkpoint, or the start."""
        text, count = self.kept or (None, 0)
        found = Checkpoint(Path("step"), json.loads(text)) if text else None
        self.place = Place.of(self.config, found)
        del self.learned[count:]

    async def session(self, seed: int, counts: tuple[int, int, int]) -> bool:
        """Whether it got to the end, before the driver crashed or something
        irreplaceable died.
        """
        engines, teachers, probers = counts
        delays = random_delays(seed)
        fakes = fleet(
            delays,
            engines=engines,
            teachers=teachers,
            probers=probers,
            size=1,
        )
        learner: FakeLearner = fakes.learners[0]
        learner.taken, learner.steps = self.learned, self.place.step
        caller = Caller(start_deadline_s=5.0, call_deadline_s=5.0)
        revival = Revival(
            caller, Refit(fakes, caller), Budget(10**6), lambda *_, **__: None
        )
        pipeline = Pipeline(
            self.config,
            mortal(fakes, self.fate),
            caller,
            self.place.ledger,
            self.place.recent,
            revival,
        )
        work = asyncio.ensure_future(self.train(pipeline))
        await asyncio.wait({work}, timeout=self.moment())
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            return False
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        assert loop.time() < LONG_S
        try:
            work.result()
        except LOST:
            return False
        return True

    async def train(self, pipeline: Pipeline) -> None:
        """As `run.py` does it: steps begun ahead, though not beyond the next
        checkpoint.
        """
        place, begun = self.place, deque[OpenStep]()
        try:
            while place.step < STEPS:
                checkpoint = (place.step // self.every + 1) * self.every
                ahead = place.step + 1 + self.config.rollout.max_staleness
                for number in range(
                    place.step + len(begun), min(ahead, checkpoint, STEPS)
                ):
                    prompts = [prompt(place.cursor + i) for i in range(PROMPTS)]
                    place.cursor += PROMPTS
                    begun.append(
                        pipeline.begin(prompts, step=number, policy_version=place.step)
                    )
                await pipeline.finish(begun[0])
                begun.popleft()
                place.step += 1
                if place.step % self.every == 0 or place.step == STEPS:
                    self.kept = json.dumps(place.state()), len(self.learned)
        finally:
            for one in begun:
                one.abandon()

    def fate(self) -> str:
        """What becomes of an actor at a call."""
        return self.rng.choice([DEAD, SILENT]) if self.rng.random() < self.share else ""

    def moment(self) -> float | None:
        """When the driver crashes, in seconds after its start; None: it does not."""
        if not self.crashes:
            return None
        self.crashes -= 1
        return self.rng.uniform(0, self.rng.choice([0.01, 0.03, 20.0]))


@settings(max_examples=10_000, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    every=st.integers(1, STEPS),
    stale=st.integers(0, 1),
    share=st.sampled_from([0.0, 0.02, 0.1]),
    crashes=st.integers(0, 3),
    counts=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
)
def test_each_rollout_is_learned_once_and_in_order_and_nobody_waits_for_nobody(
    seed: int,
    every: int,
    stale: int,
    share: float,
    crashes: int,
    counts: tuple[int, int, int],
) -> None:
    history = History(
        random.Random(seed), every=every, stale=stale, share=share, crashes=crashes
    )
    history.live(*counts)
    assert history.learned == ROLLOUTS
    ledger = history.place.ledger
    assert ledger.num_dispatched == ledger.num_consumed == len(ROLLOUTS)
    assert ledger.dropped.total() == 0
    assert ledger.waiting() == {}


class Forgetful(History):
    """A driver that does not go back: it starts anew, and keeps what was learned."""

    def take_up(self) -> None:
        self.place = Place.of(self.config, None)


def test_a_history_in_which_something_is_learned_twice_is_seen() -> None:
    found = []
    for seed in range(20):
        history = Forgetful(
            random.Random(seed), every=STEPS, stale=0, share=0.0, crashes=1
        )
        history.live(1, 1, 1)
        found.append(history.learned)
    assert any(learned != ROLLOUTS for learned in found)
