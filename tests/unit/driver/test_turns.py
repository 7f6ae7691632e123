"""Roles that take turns: the order of calls, and what is trained, with and without.

The real loop, pipeline, weight sync and handles, in virtual time; the workers are fakes
that complain about a call which finds them asleep.
"""

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import pytest

from tests.make import prompt
from tests.unit.driver.fleet import (
    DEAD,
    FakeProcess,
    Fakes,
    Steps,
    TurnWatch,
    config,
    fakes,
    loop_over,
    random_delays,
)
from topd_ray.actors.calls import Calls
from topd_ray.actors.learner_group import LearnerActorGroup
from topd_ray.actors.replacement import FailureBudget, Replacement
from topd_ray.actors.roles import ROLES, RoleName
from topd_ray.driver.sigterm import Stop
from topd_ray.driver.turns import RoleTurns
from topd_ray.simulate.clock import run_in_virtual_time

ALL: frozenset[RoleName] = frozenset(ROLES)
PROBLEMS = [prompt(100 + position) for position in range(3)]
METHODS: dict[str, dict[str, Any]] = {
    "topd": {},
    "opd": {"run": {"method": "opd"}},
    "rewrites": {
        "run": {"method": "trd"},
        "prompts": {"path": "p", "per_step": 4},
    },
    "takeovers": {
        "run": {"method": "takeover"},
        "takeover": {"verdict": "d_ot", "keep": "all"},
    },
    "follows": {
        "run": {"method": "opsd", "checkpoint_every": 2},
        "teacher": {"follow_every": 2},
    },
}
COUNTS = {"engines": 2, "teachers": 2, "probers": 2, "ranks": 2}


@dataclass
class Ran:
    """What a run did."""

    workers: Fakes
    hooks: Steps
    watch: TurnWatch | None
    num_replaced: int

    @property
    def trained(self) -> list[Any]:
        return [
            (learner.taken, learner.thresholds, learner.taken_over, learner.shares)
            for learner in self.workers.learners
        ]


class Saving(Steps):
    """Saves as a run does: the learner must be awake."""

    turns: RoleTurns

    async def save(self) -> None:
        await self.turns.to("learner")


def run(
    method: str,
    takes_turns: frozenset[RoleName],
    *,
    seed: int = 0,
    steps: int = 5,
    dies: Any = lambda: "",
    counts: dict[str, int] = COUNTS,
) -> Ran:
    sections = {"evaluation": {"path": "held-out", "every": 2}} | METHODS[method]
    sections["run"] = {"checkpoint_every": 2} | sections.get("run", {})
    sections["learner"] = {"model": "s", "num_ranks": counts.get("ranks", 1)}
    # Room for one chunk an engine: by turns all of a step's have room all the same.
    chosen = config(sections, max_chunks_in_flight=1)
    workers = fakes(random_delays(seed), some_fork=method == "takeovers", **counts)
    hooks = Saving(4)
    replaced = list[str]()

    async def go() -> None:
        fleet = workers.fleet(
            Calls(start_deadline_s=60.0, call_deadline_s=60.0),
            Replacement(
                FailureBudget(1000, window_steps=1), lambda *a: replaced.append(a[0])
            ),
            dies,
            takes_turns=takes_turns,
        )
        loop = loop_over(chosen, fleet, hooks, steps=steps, problems=PROBLEMS)
        hooks.turns = loop._turns
        await loop.run()

    run_in_virtual_time(go())
    return Ran(workers, hooks, workers.learners[0].watch, len(replaced))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS)
def test_one_role_is_awake_at_a_time_every_call_finds_its_actor_awake_and_trains_alike(
    method: str, seed: int
) -> None:
    by_turns = run(method, ALL, seed=seed)
    assert by_turns.watch is not None
    assert by_turns.watch.complaints == []
    together = run(method, frozenset(), seed=seed)
    assert by_turns.trained == together.trained
    assert by_turns.hooks.accuracies.keys() == together.hooks.accuracies.keys()
    for one, other in zip(
        by_turns.workers.rollouts, together.workers.rollouts, strict=True
    ):
        assert one.versions == other.versions
        assert one.evaluated == other.evaluated


def test_a_step_has_four_turns_in_their_order() -> None:
    ran = run("opd", ALL, steps=1, counts={"engines": 1})
    assert ran.watch is not None
    assert ran.watch.story == [
        "learner sleep",
        "rollout wake",
        "rollout roll_out",
        "rollout sleep",
        "teacher wake",
        "teacher score",
        "teacher sleep",
        "learner wake",
        "learner accumulate",
        "learner step",
        "learner publish",
        "learner sleep",
        "rollout wake",
        "rollout update",
        "rollout sleep",
        "learner wake",  # for the checkpoint of the last step
    ]


@pytest.mark.parametrize(
    ("pair", "barriers"),
    [
        (("rollout", "learner"), {"rollout", "learner"}),
        (("teacher", "learner"), {"teacher", "learner"}),
        (("rollout", "teacher"), {"rollout", "teacher"}),
    ],
)
def test_a_role_with_gpus_for_itself_never_sleeps(
    pair: tuple[RoleName, RoleName], barriers: set[str]
) -> None:
    ran = run("topd", frozenset(pair))
    assert ran.watch is not None
    told = {line for line in ran.watch.story if line.endswith(("sleep", "wake"))}
    assert {line.split()[0] for line in told} == barriers
    assert ran.trained == run("topd", frozenset()).trained


@pytest.mark.parametrize("seed", range(12))
def test_an_actor_that_is_lost_is_started_anew_in_its_own_turn_alone(seed: int) -> None:
    """Whether it is lost at work, asleep, or in between."""
    rng = random.Random(seed)
    method = rng.choice(sorted(METHODS))
    ran = run(
        method,
        ALL,
        seed=seed,
        dies=lambda: DEAD if rng.random() < 0.06 else "",
    )
    assert ran.watch is not None
    assert ran.num_replaced > 0
    assert ran.watch.complaints == []
    assert ran.trained == run(method, frozenset(), seed=seed).trained


@pytest.mark.parametrize("back_to", ["learner", "rollout"])
def test_a_change_that_was_cut_short_is_made_again_before_the_next(
    back_to: RoleName,
) -> None:
    """A stop may cancel a step while roles change places."""
    workers = fakes(lambda _: 0.0)

    async def go() -> None:
        fleet = workers.fleet(
            Calls(start_deadline_s=60.0, call_deadline_s=60.0), takes_turns=ALL
        )
        turns = RoleTurns(fleet)
        await turns.to("rollout")
        (engine,) = workers.rollouts
        async with engine.one_at_a_time:  # busy: it cannot sleep yet
            change = asyncio.ensure_future(turns.to("teacher"))
            await asyncio.sleep(1.0)
            change.cancel()
            await asyncio.gather(change, return_exceptions=True)
        await turns.to(back_to)

    run_in_virtual_time(go())
    watch = workers.learners[0].watch
    assert watch is not None
    assert watch.complaints == []
    assert {watch.roles[w] for w, part in watch.part.items() if part} == {back_to}


@pytest.mark.parametrize("slow", ["rollout", "score", "learn"])
def test_a_stop_wakes_the_learner_although_others_are_at_work(slow: str) -> None:
    """Its weights are written; what the others would decode for hours is not wanted."""

    def delay(what: str) -> float:
        return 10_000.0 if what.startswith(slow) else 1.0

    workers = fakes(delay)
    hooks = Saving(4)
    asleep_after = list[float]()

    async def go() -> None:
        fleet = workers.fleet(
            Calls(start_deadline_s=1e6, call_deadline_s=1e6), takes_turns=ALL
        )
        stop = Stop(grace_s=50.0)
        loop = loop_over(config(), fleet, hooks, steps=5, stop=stop)
        hooks.turns = loop._turns
        asyncio.get_running_loop().call_later(10.0, stop.request)
        await loop.run()
        asleep_after.append(asyncio.get_running_loop().time())
        await hooks.save()

    run_in_virtual_time(go())
    watch = workers.learners[0].watch
    assert watch is not None
    assert watch.complaints == []
    assert {watch.roles[w] for w, part in watch.part.items() if part} == {"learner"}
    assert asleep_after[0] < 100.0
    assert hooks.receipts == []
    assert hooks.cursor == 0


def test_weights_are_not_published_again_by_ranks_that_sleep() -> None:
    """A successor of an engine would else wait for a learner without its GPUs."""
    workers = fakes(lambda _: 0.0)

    async def go() -> list[Any]:
        group = LearnerActorGroup(
            [FakeProcess(worker) for worker in workers.learners],
            Calls(start_deadline_s=60.0, call_deadline_s=60.0),
        )
        await group.publish(3)
        again = [await group.publish_again(3)]
        await group.sleep()
        again.append(await group.publish_again(3))
        await group.wake()
        again.append(await group.publish_again(3))
        return again

    again = run_in_virtual_time(go())
    assert [weights is None for weights in again] == [False, True, False]
