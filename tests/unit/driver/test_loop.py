"""Which step begins when, what is evaluated with which weights, and how a stop ends."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.make import prompt
from tests.unit.driver.fleet import (
    Delay,
    Fakes,
    Steps,
    config,
    fakes,
    loop_over,
    random_delays,
)
from topd_ray.actors.calls import Calls
from topd_ray.driver.ledger import Ledger
from topd_ray.driver.loop import Schedule
from topd_ray.driver.sigterm import Stop
from topd_ray.simulate.clock import run_in_virtual_time

PROBLEMS = [prompt(100 + position) for position in range(3)]


@given(
    done=st.integers(0, 40),
    ahead=st.integers(0, 4),
    every=st.integers(1, 12),
    stale=st.integers(0, 4),
    total=st.integers(1, 40),
)
def test_no_step_begins_beyond_its_staleness_the_next_checkpoint_or_the_end(
    done: int, ahead: int, every: int, stale: int, total: int
) -> None:
    schedule = Schedule(total_steps=total, checkpoint_every=every, max_staleness=stale)
    for number in schedule.steps_to_begin(done, ahead):
        assert number >= done + ahead
        assert number - done <= stale
        assert number < total
        assert number // every == done // every


def run(workers: Fakes, steps: int, sections: dict[str, Any], **options: Any) -> Steps:
    hooks = Steps(4)
    chosen = config(sections)

    async def go() -> None:
        calls = Calls(start_deadline_s=60.0, call_deadline_s=60.0)
        fleet = workers.fleet(calls, replaceable=False)
        loop = loop_over(chosen, fleet, hooks, steps=steps, **options)
        await loop.run()

    run_in_virtual_time(go())
    return hooks


@pytest.mark.parametrize("stale", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_held_out_problems_are_answered_every_so_many_steps_by_those_weights(
    stale: int, seed: int
) -> None:
    workers = fakes(random_delays(seed), engines=2)
    sections = {
        "rollout": {"samples_per_prompt": 2, "chunk_size": 2, "max_staleness": stale},
        "evaluation": {"path": "held-out", "every": 3},
        "run": {"checkpoint_every": 50},
    }
    hooks = run(workers, 10, sections, problems=PROBLEMS)
    assert list(hooks.accuracies) == [3, 6, 9]
    assert {a.num_problems for a in hooks.accuracies.values()} == {len(PROBLEMS)}
    for engine in workers.rollouts:
        assert engine.evaluated == [3, 6, 9]  # versions of the weights that answered


class Busy:
    """A rollout engine in this process, which computes before `evaluate` returns."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def evaluate(self, problems: Any) -> Any:
        until_s = time.process_time() + 0.2
        while time.process_time() < until_s:
            pass
        return self._handle.evaluate(problems)


def test_the_cpu_seconds_of_an_evaluation_are_told_with_the_step_behind_it() -> None:
    hooks = Steps(4)
    chosen = config({"evaluation": {"path": "held-out", "every": 2}})

    async def go() -> None:
        calls = Calls(start_deadline_s=60.0, call_deadline_s=60.0)
        fleet = fakes(lambda _: 0.0).fleet(calls, replaceable=False)
        busy = replace(fleet, rollouts=[Busy(engine) for engine in fleet.rollouts])
        await loop_over(chosen, busy, hooks, steps=5, problems=PROBLEMS).run()

    run_in_virtual_time(go())
    assert [seconds >= 0.2 for seconds in hooks.evaluation_cpu_s] == [
        False,
        False,
        True,  # after step 2
        False,
        True,  # after step 4
    ]


def stopped(
    delay: Delay, *, grace_s: float, at_s: float
) -> tuple[Steps, Ledger, Fakes]:
    """A run of many steps, asked to stop at a moment of virtual time."""
    workers = fakes(delay)
    hooks = Steps(4)
    ledger = Ledger()

    async def go() -> None:
        stop = Stop(grace_s)
        asyncio.get_running_loop().call_later(at_s, stop.request)
        calls = Calls(start_deadline_s=1e4, call_deadline_s=1e4)
        loop = loop_over(
            config(), workers.fleet(calls), hooks, steps=50, ledger=ledger, stop=stop
        )
        await loop.run()

    run_in_virtual_time(go())
    return hooks, ledger, workers


def test_a_step_that_ends_within_the_grace_is_finished() -> None:
    def slow_learner(work: str) -> float:
        return 25.0 if work.startswith("learn") else 0.0

    hooks, ledger, workers = stopped(slow_learner, grace_s=200.0, at_s=110.0)
    assert len(hooks.receipts) == 5  # a step takes 25 s
    assert ledger.state()["num_consumed"] == hooks.cursor * 2 == 40
    assert workers.learners[0].num_abandoned == 0


def test_a_step_longer_than_the_grace_is_abandoned_as_if_it_had_never_begun() -> None:
    """The last finished step is what a checkpoint is written of."""

    def slow_learner(work: str) -> float:
        return 25.0 if work.startswith("learn") else 0.0

    hooks, ledger, workers = stopped(slow_learner, grace_s=20.0, at_s=101.0)
    assert len(hooks.receipts) == 4
    assert ledger.state()["num_consumed"] == ledger.num_dispatched == 32
    assert hooks.cursor == 16
    assert workers.learners[0].steps == 4
    assert workers.learners[0].num_abandoned == 1


def test_a_stop_before_the_first_step_leaves_a_state_to_save() -> None:
    hooks, ledger, _ = stopped(lambda _: 1.0, grace_s=0.5, at_s=0.0)
    assert hooks.receipts == []
    assert ledger.state()["num_dispatched"] == 0
    assert hooks.cursor == 0
