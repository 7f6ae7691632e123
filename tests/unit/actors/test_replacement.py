"""Actors die at any call, and the run's losses do not change.

Fakes, for deaths at moments of the test's choosing; `tests/chaos` kills real processes.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayActorError

from tests.unit.driver.fleet import (
    DEAD,
    SILENT,
    Dies,
    Fakes,
    Steps,
    config,
    fakes,
    loop_over,
    random_delays,
)
from topd_ray.actors.calls import Calls
from topd_ray.actors.handles import Handle
from topd_ray.actors.replacement import FailureBudget, Replacement
from topd_ray.driver.ledger import Ledger
from topd_ray.errors import ActorDiedError, DeadlineError, TopdError
from topd_ray.simulate.clock import run_in_virtual_time

NUM_PROMPTS = 5
HISTORIES, PARTS = 1000, 4
"""Each part is one test, so that two processes share the histories."""
SAMPLES = 2


def train(
    workers: Fakes,
    dies: Dies,
    *,
    steps: int,
    most: int,
    replaced: list[str],
    **rollout: Any,
) -> Ledger:
    chosen = config(
        {"rollout": {"samples_per_prompt": SAMPLES, "chunk_size": 2} | rollout}
    )
    calls = Calls(start_deadline_s=5.0, call_deadline_s=5.0)
    ledger = Ledger()

    async def go() -> None:
        replacement = Replacement(
            FailureBudget(most, window_steps=100),
            lambda actor, _: replaced.append(actor),
        )
        fleet = workers.fleet(
            calls,
            replacement,
            dies,
            replaceable=chosen.rollout.max_staleness == 0,
        )
        hooks = Steps(NUM_PROMPTS)
        await loop_over(chosen, fleet, hooks, steps=steps, ledger=ledger).run()

    run_in_virtual_time(go())
    return ledger


@pytest.mark.parametrize("part", range(PARTS))
@settings(max_examples=HISTORIES // PARTS, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.0, 0.3),
    engines=st.integers(1, 3),
    teachers=st.integers(1, 2),
    probers=st.integers(1, 2),
)
def test_under_any_deaths_each_rollout_is_learned_once_and_in_the_same_order(
    part: int, seed: int, share: float, engines: int, teachers: int, probers: int
) -> None:
    del part  # hypothesis draws other examples in each

    def order(dies: Dies) -> tuple[list[str], list[float]]:
        workers = fakes(
            random_delays(seed), engines=engines, teachers=teachers, probers=probers
        )
        ledger = train(workers, dies, steps=2, most=10**6, replaced=[])
        assert ledger.num_consumed == ledger.num_dispatched == 2 * NUM_PROMPTS * SAMPLES
        return workers.learners[0].taken, workers.learners[0].thresholds

    rng = random.Random(seed)
    fates = [DEAD, SILENT]
    struck = order(lambda: rng.choice(fates) if rng.random() < share else "")
    assert struck == order(lambda: "")


@pytest.mark.parametrize("deaths", [1, 3])
def test_deaths_are_counted_and_the_budget_ends(deaths: int) -> None:
    left = iter([DEAD] * deaths)
    replaced = list[str]()
    workers = fakes(random_delays(0))

    def dies() -> str:
        return next(left, "")

    if deaths > 2:
        with pytest.raises(ActorDiedError, match=r"rollout\[0\] died in roll_out"):
            train(workers, dies, steps=1, most=2, replaced=replaced)
    else:
        train(workers, dies, steps=1, most=2, replaced=replaced)
    assert replaced == ["rollout[0]"] * min(deaths, 2)


def test_a_dead_rollout_engine_that_was_ahead_is_not_replaced() -> None:
    """Its queue held requests of several policy versions; the run goes back instead."""
    left = iter([DEAD])
    with pytest.raises(ActorDiedError, match=r"rollout\[0\]"):
        train(
            fakes(random_delays(0)),
            lambda: next(left, ""),
            steps=1,
            most=2,
            replaced=[],
            max_staleness=1,
        )


def test_rare_losses_over_a_long_run_do_not_end_it() -> None:
    async def go() -> int:
        budget = FailureBudget(2, window_steps=10)
        for step in range(200):
            if step % 6 == 0:  # never more than two within ten steps
                await budget.spend(ActorDiedError("gone"))
            budget.count_step()
        return budget.num_failures

    assert run_in_virtual_time(go()) == 34


def test_a_loss_at_the_same_step_every_time_ends_the_run() -> None:
    """Going back to a checkpoint counts its steps again, and forgives nothing."""

    async def go() -> int:
        budget = FailureBudget(3, window_steps=100)
        for attempt in range(10):
            for _ in range(10):  # from the checkpoint to the step that kills
                budget.count_step()
            try:
                await budget.spend(ActorDiedError("gone"))
            except ActorDiedError:
                return attempt
        return -1

    assert run_in_virtual_time(go()) == 3


def test_pauses_grow_with_the_losses_of_the_window() -> None:
    async def go() -> list[float]:
        budget = FailureBudget(4, window_steps=10)
        loop = asyncio.get_running_loop()
        ends = []
        for _ in range(4):
            await budget.spend(ActorDiedError("gone"))
            ends.append(loop.time())
        return ends

    assert run_in_virtual_time(go()) == [0.5, 1.5, 3.5, 7.5]


class Unsteady:
    """A process whose first instance dies in its first call."""

    def __init__(self, number: int, loads_s: float) -> None:
        self.number = number
        self._loads_s = loads_s

    def call(self, method: str, *_: Any, num_returns: int = 1) -> list[Any]:
        assert num_returns == 1
        return [asyncio.ensure_future(getattr(self, f"_{method}")())]

    def stream(self, method: str, *_: Any, room: int | None = None) -> Any:
        raise AssertionError((method, room))

    def kill(self) -> None:
        """Nothing to end."""

    async def _ready(self) -> None:
        await asyncio.sleep(self._loads_s)

    async def _clock(self) -> float:
        return 0.0

    async def _score(self) -> int:
        await asyncio.sleep(0.01)
        if self.number == 0:
            raise RayActorError
        return self.number


def unsteady(
    calls: Calls, started: list[int], most: int, loads_s: float = 0.0
) -> tuple[Handle, Replacement]:
    def start() -> Unsteady:
        started.append(len(started))
        return Unsteady(started[-1], loads_s)

    replacement = Replacement(FailureBudget(most, window_steps=9), lambda *_: None)
    return Handle("teacher[0]", start, calls, replacement), replacement


def scored(handle: Handle) -> Callable[[], Any]:
    return lambda: handle._call("score")


def test_a_death_fails_several_calls_and_is_one() -> None:
    """Three calls wait for a teacher that dies: one replacement answers them all."""
    started = list[int]()

    async def go() -> list[tuple[int, ...]]:
        calls = Calls(start_deadline_s=5.0, call_deadline_s=5.0)
        handle, _ = unsteady(calls, started, most=1)
        return await asyncio.gather(*(scored(handle)() for _ in range(3)))

    assert run_in_virtual_time(go()) == [(1,), (1,), (1,)]
    assert started == [0, 1]


def test_nothing_is_started_for_a_session_that_has_ended() -> None:
    """A call that outlives its session must not start an engine without an owner."""
    started = list[int]()

    async def go() -> None:
        calls = Calls(start_deadline_s=5.0, call_deadline_s=5.0)
        handle, replacement = unsteady(calls, started, most=9)
        call = asyncio.ensure_future(scored(handle)())
        await asyncio.sleep(0)
        replacement.close()
        with pytest.raises(ActorDiedError):
            await call

    run_in_virtual_time(go())
    assert started == [0]


@pytest.mark.parametrize(("loads_s", "comes"), [(50.0, True), (70.0, False)])
def test_an_actor_that_loads_for_longer_than_a_call_may_take_is_waited_for(
    loads_s: float, comes: bool
) -> None:
    """A wait for an actor to load has a deadline of another field."""
    started = list[int]()

    async def go() -> Any:
        calls = Calls(start_deadline_s=60.0, call_deadline_s=5.0)
        handle, _ = unsteady(calls, started, most=3, loads_s=loads_s)
        return await scored(handle)()

    if comes:
        assert run_in_virtual_time(go()) == (1,)
        assert started == [0, 1]
    else:
        with pytest.raises(DeadlineError, match=r"owed the result of ready for 60 s"):
            run_in_virtual_time(go())


def test_an_error_that_an_actor_raises_is_no_death() -> None:
    workers = fakes(random_delays(0), fail_at=0)
    with pytest.raises((RuntimeError, TopdError), match="engine burst"):
        train(workers, lambda: "", steps=1, most=5, replaced=[])
