"""Histories: results, deaths, silences, retries, checkpoints, crashes, in any order.

The real loop, pipeline, ledger, handles and state, in virtual time. Only the workers
are fakes, since what is tested is who waits for whom at moments that real ones never
show.
"""

import asyncio
import json
import os
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.make import prompt
from tests.unit.driver.fleet import (
    DEAD,
    SILENT,
    Fakes,
    Steps,
    config,
    fakes,
    loop_over,
    random_delays,
)
from topd_ray.actors.calls import Calls
from topd_ray.actors.replacement import LOST, FailureBudget, Replacement
from topd_ray.config import Config
from topd_ray.driver.checkpoint import Checkpoint
from topd_ray.driver.loop import FinishedStep
from topd_ray.driver.state import RunState
from topd_ray.messages import Prompt, rollout_id
from topd_ray.simulate.clock import VirtualLoop, run_in_virtual_time

STEPS, PROMPTS = 3, 2
HISTORIES, PARTS = int(os.environ.get("TOPD_FUZZ", "4000")), 8
"""Each part is one test, so that two processes share the histories."""
ROLLOUTS = [rollout_id(prompt(position), 0) for position in range(STEPS * PROMPTS)]
LONG_S = 3600.0
"""Of virtual time; a session that takes longer waits for an answer that never comes."""


@cache
def chosen_config(every: int, stale: int) -> Config:
    rollout = {"samples_per_prompt": 1, "chunk_size": 1, "max_staleness": stale}
    return config({"rollout": rollout, "run": {"checkpoint_every": every}})


class History(Steps):
    """One run, from its start to its end, over as many sessions as it takes."""

    def __init__(
        self, rng: random.Random, *, every: int, stale: int, share: float, crashes: int
    ) -> None:
        super().__init__(PROMPTS)
        self.rng = rng
        self.share = share
        self.crashes = crashes
        self.chosen = chosen_config(every, stale)
        self.learned = list[str]()
        self.kept: tuple[str, int] | None = None
        """The newest checkpoint: the driver's state, and how much was learned by
        then.
        """
        self.state = RunState.of(self.chosen, None)

    def live(self, engines: int, teachers: int, probers: int) -> None:
        """Sessions until one gets to the end."""
        seed = self.rng.randrange(10**6)
        while not run_in_virtual_time(self.session(seed, (engines, teachers, probers))):
            self.go_back()

    def go_back(self) -> None:
        """What a new driver does: the newest checkpoint, or the start."""
        text, count = self.kept or (None, 0)
        found = Checkpoint(Path("step"), json.loads(text)) if text else None
        self.state = RunState.of(self.chosen, found)
        del self.learned[count:]

    async def session(self, seed: int, counts: tuple[int, int, int]) -> bool:
        """Whether it got to the end, before the driver crashed or an actor was lost."""
        engines, teachers, probers = counts
        workers = fakes(
            random_delays(seed),
            engines=engines,
            teachers=teachers,
            probers=probers,
            size=1,
        )
        (learner,) = workers.learners
        learner.taken = self.learned
        learner.steps = self.state.step
        self.cursor = self.state.cursor
        work = asyncio.ensure_future(self.train(workers))
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

    async def train(self, workers: Fakes) -> None:
        fleet = workers.fleet(
            Calls(start_deadline_s=5.0, call_deadline_s=5.0),
            Replacement(FailureBudget(10**6, window_steps=1), lambda *_: None),
            self.fate,
            replaceable=self.chosen.rollout.max_staleness == 0,
        )
        loop = loop_over(
            self.chosen,
            fleet,
            self,
            steps=STEPS,
            ledger=self.state.ledger,
            recent=self.state.recent,
            step=self.state.step,
        )
        await loop.run()

    async def finished(self, finished: FinishedStep) -> None:
        self.state.step = finished.report.step
        self.state.cursor += len(finished.prompts)

    def put_back(self, prompts: Sequence[Prompt]) -> None:
        super().put_back(prompts)
        assert self.cursor >= self.state.cursor

    async def save(self) -> None:
        self.kept = json.dumps(self.state.plain()), len(self.learned)

    def fate(self) -> str:
        """What becomes of an actor at a call."""
        return self.rng.choice([DEAD, SILENT]) if self.rng.random() < self.share else ""

    def moment(self) -> float | None:
        """When the driver crashes, in seconds after its start; None: it does not."""
        if not self.crashes:
            return None
        self.crashes -= 1
        return self.rng.uniform(0, self.rng.choice([0.01, 0.03, 20.0]))


@pytest.mark.parametrize("part", range(PARTS))
@settings(max_examples=HISTORIES // PARTS, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    every=st.integers(1, STEPS),
    stale=st.integers(0, 1),
    share=st.sampled_from([0.0, 0.02, 0.1]),
    crashes=st.integers(0, 3),
    counts=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
)
def test_each_rollout_is_learned_once_in_order_and_no_wait_is_endless(
    part: int,
    seed: int,
    every: int,
    stale: int,
    share: float,
    crashes: int,
    counts: tuple[int, int, int],
) -> None:
    del part  # hypothesis draws other examples in each
    history = History(
        random.Random(seed), every=every, stale=stale, share=share, crashes=crashes
    )
    history.live(*counts)
    assert history.learned == ROLLOUTS
    ledger = history.state.ledger
    assert ledger.num_dispatched == ledger.num_consumed == len(ROLLOUTS)
    assert ledger.dropped.total() == 0
    assert ledger.waiting() == {}


class Forgetful(History):
    """A driver that does not go back: it starts anew, and keeps what was learned."""

    def go_back(self) -> None:
        self.state = RunState.of(self.chosen, None)


def test_a_history_in_which_something_is_learned_twice_is_seen() -> None:
    histories = []
    for seed in range(20):
        history = Forgetful(
            random.Random(seed), every=STEPS, stale=0, share=0.0, crashes=1
        )
        history.live(1, 1, 1)
        histories.append(history.learned)
    assert any(learned != ROLLOUTS for learned in histories)
