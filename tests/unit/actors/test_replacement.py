"""Actors die at any call, and the run's losses do not change.

Fakes, for deaths at moments of the test's choosing; `tests/chaos` kills real processes.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayActorError

from tests.make import prompt
from tests.unit.driver.fleet import Method, fleet
from tests.unit.driver.test_pipeline import config, random_delays
from topd_ray.actors.calls import Caller
from topd_ray.actors.fleet import Fleet, Member
from topd_ray.actors.replacement import Budget, Revival
from topd_ray.driver.ledger import Ledger
from topd_ray.driver.pipeline import Pipeline
from topd_ray.driver.weight_sync import Refit
from topd_ray.errors import ActorDiedError, DeadlineError, TopdError
from topd_ray.simulate.clock import run_in_virtual_time
from topd_ray.windows import RecentDistances

NUM_RETURNS = {"score": 3, "continue_from": 2, "probe": 2}
NUM_PROMPTS, SAMPLES = 5, 2
DEAD, SILENT = "dead", "silent"
Dies = Callable[[], str]
"""What becomes of an actor at this call: nothing (""), or one of the two."""


class Mortal:
    """A fake in a process that ends when `dies` says so, or falls silent; then it never
    answers.
    """

    def __init__(self, fake: Any, dies: Dies) -> None:
        self._fake, self._dies, self._fate = fake, dies, ""
        self.ready = Method(lambda: asyncio.sleep(0))

    def __getattr__(self, what: str) -> Method:
        if what == "roll_out":
            return Method(lambda *a, **k: self._streamed(a, k))
        return Method(lambda *a, **k: self._called(what, a, k))

    def _called(self, what: str, arguments: Any, named: Any) -> Any:
        if self._lost():
            return (None,) * (NUM_RETURNS[what] - 1) + (_lost(self._fate),)
        return getattr(self._fake, what).remote(*arguments, **named)

    async def _streamed(self, arguments: Any, named: Any) -> AsyncIterator[Any]:
        items = self._fake.roll_out.remote(*arguments, **named)
        async for item in items:
            if self._lost():
                await (
                    items.aclose()
                )  # nothing of a dead process holds up the one in its place
                yield _lost(self._fate)
                return
            yield item

    def _lost(self) -> bool:
        self._fate = self._fate or self._dies()
        return bool(self._fate)


async def _lost(fate: str) -> Any:
    if fate == SILENT:
        await asyncio.Event().wait()
    raise RayActorError


def mortal(fakes: Fleet, dies: Dies) -> Fleet:
    """The same fleet in processes that may end, except the learners."""

    def member(name: str, fake: Any) -> Member:
        return Member(name, lambda: Mortal(fake, dies), end=lambda _: None)

    return Fleet(
        rollouts=[
            member(f"rollout[{i}]", fake) for i, fake in enumerate(fakes.rollouts)
        ],
        teachers=[
            member(f"teacher[{i}]", fake) for i, fake in enumerate(fakes.teachers)
        ],
        probers=[member(f"prober[{i}]", fake) for i, fake in enumerate(fakes.probers)],
        learners=fakes.learners,
    )


def train(
    fakes: Fleet, *, steps: int, most: int, notes: list[str], **rollout: Any
) -> Ledger:
    chosen = config(
        {"rollout": {"samples_per_prompt": SAMPLES, "chunk_size": 2} | rollout}
    )
    caller, ledger = Caller(start_deadline_s=5.0, call_deadline_s=5.0), Ledger()
    recent = RecentDistances(chosen.windows.divergence)

    async def go() -> None:
        reviving = Revival(
            caller,
            Refit(fakes, caller),
            Budget(most),
            lambda what, **_: notes.append(what),
        )
        pipeline = Pipeline(chosen, fakes, caller, ledger, recent, reviving)
        for number in range(steps):
            prompts = [prompt(NUM_PROMPTS * number + i) for i in range(NUM_PROMPTS)]
            await pipeline.finish(
                pipeline.begin(prompts, step=number, policy_version=number)
            )

    run_in_virtual_time(go())
    return ledger


@settings(max_examples=1000, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.0, 0.3),
    engines=st.integers(1, 3),
    teachers=st.integers(1, 2),
    probers=st.integers(1, 2),
)
def test_whoever_dies_each_rollout_is_learned_once_and_in_the_order_of_a_run_without(
    seed: int, share: float, engines: int, teachers: int, probers: int
) -> None:
    def order(dies: Dies) -> tuple[list[str], list[float]]:
        fakes = fleet(
            random_delays(seed), engines=engines, teachers=teachers, probers=probers
        )
        ledger = train(mortal(fakes, dies), steps=2, most=10**6, notes=[])
        assert ledger.num_consumed == ledger.num_dispatched == 2 * NUM_PROMPTS * SAMPLES
        return fakes.learners[0].taken, fakes.learners[0].lines

    rng = random.Random(seed)
    fates = [DEAD, SILENT]
    struck = order(lambda: rng.choice(fates) if rng.random() < share else "")
    assert struck == order(lambda: "")


@pytest.mark.parametrize("deaths", [1, 3])
def test_deaths_are_counted_and_the_budget_ends(deaths: int) -> None:
    left = iter([DEAD] * deaths)
    notes = list[str]()
    fakes = mortal(fleet(random_delays(0)), lambda: next(left, ""))
    if deaths > 2:
        with pytest.raises(ActorDiedError, match=r"rollout\[0\] died in roll_out"):
            train(fakes, steps=1, most=2, notes=notes)
    else:
        train(fakes, steps=1, most=2, notes=notes)
    assert notes == ["replaced"] * min(deaths, 2)


def test_a_dead_rollout_engine_that_was_ahead_is_not_replaced() -> None:
    """Its queue held prompts of several policy versions; the run goes back to its
    checkpoint.
    """
    left = iter([DEAD])
    fakes = mortal(fleet(random_delays(0)), lambda: next(left, ""))
    with pytest.raises(ActorDiedError, match=r"rollout\[0\]"):
        train(fakes, steps=1, most=2, notes=[], max_staleness=1)


def test_a_death_fails_several_calls_and_is_one() -> None:
    """Three calls wait for a teacher that dies: one comes in its place, and all ask
    that one.
    """
    started = list[int]()

    class Teacher:
        def __init__(self) -> None:
            self.number = len(started)
            started.append(self.number)
            self.ready = Method(lambda: asyncio.sleep(0))
            self.score = Method(self._score)

        async def _score(self) -> int:
            await asyncio.sleep(0.01)
            if self.number == 0:
                raise RayActorError
            return self.number

    async def go() -> list[tuple[int, ...]]:
        caller = Caller(start_deadline_s=5.0, call_deadline_s=5.0)
        nobody = Fleet(rollouts=[], teachers=[], probers=[], learners=[])
        reviving = Revival(
            caller, Refit(nobody, caller), Budget(1), lambda *_, **__: None
        )
        teacher = Member("teacher[0]", Teacher, end=lambda _: None)
        return await asyncio.gather(
            *(
                reviving.asked(
                    "teacher[0]", teacher, "score", lambda on: on.score.remote()
                )
                for _ in range(3)
            )
        )

    assert run_in_virtual_time(go()) == [(1,), (1,), (1,)]
    assert started == [0, 1]


@pytest.mark.parametrize(("loads_s", "comes"), [(50.0, True), (70.0, False)])
def test_who_compiles_for_longer_than_a_call_may_take_is_not_shot(
    loads_s: float, comes: bool
) -> None:
    """A wait for an actor to load has a deadline of its own."""
    started = list[int]()

    class Teacher:
        def __init__(self) -> None:
            self.number = len(started)
            started.append(self.number)
            self.ready = Method(lambda: asyncio.sleep(loads_s))
            self.score = Method(self._score)

        async def _score(self) -> int:
            if self.number == 0:
                raise RayActorError
            return self.number

    async def go() -> tuple[int, ...]:
        caller = Caller(start_deadline_s=60.0, call_deadline_s=5.0)
        nobody = Fleet(rollouts=[], teachers=[], probers=[], learners=[])
        reviving = Revival(
            caller, Refit(nobody, caller), Budget(3), lambda *_, **__: None
        )
        teacher = Member("teacher[0]", Teacher, end=lambda _: None)
        return await reviving.asked(
            "teacher[0]", teacher, "score", lambda on: on.score.remote()
        )

    if comes:
        assert run_in_virtual_time(go()) == (1,)
        assert started == [0, 1]
    else:
        with pytest.raises(DeadlineError, match=r"owed the result of ready for 60 s"):
            run_in_virtual_time(go())


def test_what_an_actor_raises_is_no_death() -> None:
    fakes = fleet(random_delays(0), fail_at=0)
    with pytest.raises((RuntimeError, TopdError), match="engine burst"):
        train(fakes, steps=1, most=5, notes=[])
