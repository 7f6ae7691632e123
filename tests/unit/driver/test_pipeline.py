import asyncio
import random
from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.make import prompt
from tests.unit.driver.fleet import Delay, fleet
from topd_ray.actors.calls import Caller
from topd_ray.actors.fleet import Fleet
from topd_ray.actors.replacement import Revival
from topd_ray.config import Config, parse_config
from topd_ray.driver.ledger import Ledger
from topd_ray.driver.pipeline import Pipeline, _dealt
from topd_ray.driver.step import OpenStep, StepBooks
from topd_ray.errors import DeadlineError, TopdError
from topd_ray.messages import rollout_requests
from topd_ray.windows import RecentDistances


def config(sections: dict[str, Any] | None = None, **cluster: Any) -> Config:
    return parse_config(
        {
            "prompts": {"path": "p", "per_step": 4},
            "teacher": {"model": "t"},
            "learner": {"model": "s"},
            "rollout": {"samples_per_prompt": 2, "chunk_size": 2},
            "windows": {"divergence": {"quantile": 0.5}},
            "cluster": cluster,
        }
        | (sections or {}),
        source="test",
    )


def run(
    fakes: Fleet,
    *,
    steps: int = 1,
    num_prompts: int = 4,
    recent: RecentDistances | None = None,
    deadline_s: float = 5.0,
    sections: dict[str, Any] | None = None,
    num_dropped: int = 0,
    **cluster: Any,
) -> list[StepBooks]:
    chosen = config(sections, **cluster)
    ledger = Ledger()
    caller = Caller(start_deadline_s=deadline_s, call_deadline_s=deadline_s)
    pipeline = Pipeline(
        chosen,
        fakes,
        caller,
        ledger,
        recent or RecentDistances(chosen.windows.divergence),
        Revival.none(fakes, caller),
    )

    async def go() -> list[StepBooks]:
        books, begun, ahead = [], deque[OpenStep](), chosen.rollout.max_staleness
        for done in range(steps):
            for number in range(done + len(begun), min(steps, done + ahead + 1)):
                prompts = [prompt(num_prompts * number + i) for i in range(num_prompts)]
                begun.append(pipeline.begin(prompts, step=number, policy_version=done))
            books.append((await pipeline.finish(begun.popleft()))[1])
        return books

    books = asyncio.run(asyncio.wait_for(go(), 30))
    assert ledger.num_dispatched == steps * num_prompts * 2
    assert ledger.num_consumed == ledger.num_dispatched - num_dropped
    assert ledger.dropped.total() == num_dropped
    return books


def random_delays(seed: int, most_s: float = 0.003) -> Delay:
    rng = random.Random(seed)
    return lambda _: rng.random() * most_s


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    engines=st.integers(1, 3),
    teachers=st.integers(1, 3),
    probers=st.integers(1, 3),
    ranks=st.integers(1, 2),
    in_flight=st.integers(1, 6),
)
def test_whatever_the_timing_each_rollout_is_learned_once_and_in_the_same_order(
    seed: int, engines: int, teachers: int, probers: int, ranks: int, in_flight: int
) -> None:
    def order(delay: Delay) -> list[list[str]]:
        fakes = fleet(
            delay, engines=engines, teachers=teachers, probers=probers, ranks=ranks
        )
        run(fakes, steps=2, num_prompts=5, max_chunks_in_flight=in_flight)
        return [learner.taken for learner in fakes.learners]

    shuffled = order(random_delays(seed))
    assert shuffled == order(lambda _: 0.0)
    assert all(len(set(taken)) == len(taken) == 20 for taken in shuffled)


def test_a_slow_engine_does_not_starve_behind_a_fast_one() -> None:
    def slow_first(work: str) -> float:
        return 0.05 if work == "rollout 00000006.0" else 0.0

    run(fleet(slow_first, engines=2), num_prompts=12, max_chunks_in_flight=1)


def test_an_early_chunk_is_learned_while_a_later_one_still_decodes() -> None:
    seen: list[str] = []

    def note(work: str) -> float:
        seen.append(work)
        return 0.05 if work == "rollout 00000003.0" else 0.0

    recent = RecentDistances(config().windows.divergence, [0.5])
    run(fleet(note), recent=recent)
    last = seen.index("score 00000003.0")
    assert all(seen.index(f"learn 0000000{p}.0") < last for p in range(3))


def test_the_first_step_is_judged_by_the_line_of_all_its_own_windows() -> None:
    fakes = fleet(random_delays(1), probers=2)
    run(fakes)
    assert fakes.learners[0].lines == [0.5] * 4  # median of the sample indices 0 and 1


def test_later_steps_are_judged_by_the_line_drawn_before_them() -> None:
    fakes = fleet(random_delays(2))
    recent = RecentDistances(config().windows.divergence, [7.0])
    run(fakes, recent=recent, steps=2)
    assert fakes.learners[0].lines[:4] == [7.0] * 4
    assert (
        fakes.learners[0].lines[4:] == [1.0] * 4
    )  # median of 7 and four each of 0 and 1


def test_samples_of_one_prompt_are_dealt_to_all_engines() -> None:
    (books,) = run(fleet(lambda _: 0.0, size=1, engines=2), num_prompts=1, sections=ONE)
    assert [receipt.rollout_ids for receipt in books.rollouts] == [
        ("00000000.0",),
        ("00000000.1",),
    ]


@pytest.mark.parametrize("engines", [1, 2, 3, 5, 7])
def test_each_engine_gets_one_block_of_requests_and_blocks_are_balanced(
    engines: int,
) -> None:
    prompts = [prompt(position) for position in range(4)]
    requests = rollout_requests(prompts, 3)
    shares = _dealt(requests, engines)
    assert [request for share in shares for request in share] == requests
    sizes = [len(share) for share in shares]
    assert len(sizes) == engines
    assert max(sizes) - min(sizes) <= 1


def test_one_teacher_serves_one_call_at_a_time() -> None:
    fakes = fleet(random_delays(3), teachers=2)
    run(fakes, num_prompts=10)
    assert [teacher.most_busy for teacher in fakes.teachers] == [1, 1]


def test_books_hold_every_receipt_in_order() -> None:
    (books,) = run(fleet(random_delays(4), engines=2, ranks=2), num_prompts=6)
    firsts = [receipt.rollout_ids[0][:8] for receipt in books.rollouts]
    assert firsts == [
        "00000000",
        "00000003",
        "00000001",
        "00000004",
        "00000002",
        "00000005",
    ]
    assert len(books.scores) == len(books.probes) == len(books.learned) == 6
    assert all(len(ranks) == 2 for ranks in books.learned)


def test_an_engine_that_fails_mid_stream_ends_the_step_with_its_own_error() -> None:
    with pytest.raises(RuntimeError, match="engine burst"):
        run(fleet(lambda _: 0.0, fail_at=2))


def test_a_call_that_never_returns_is_named_when_its_deadline_passes() -> None:
    def wedged(work: str) -> float:
        return 60.0 if work == "probe 00000002.0" else 0.0

    with pytest.raises(
        DeadlineError, match=r"prober\[0\] owed the result of probe for 0.2 s"
    ):
        run(fleet(wedged), deadline_s=0.2)


ONE = {"rollout": {"samples_per_prompt": 2, "chunk_size": 1}}
REWRITE = {"run": {"method": "trd"}, "rewrite": {"keep": "pass"}}
RESAMPLE = {"probe": {"student": "resample"}}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), engines=st.integers(1, 3), probers=st.integers(1, 3))
def test_unwanted_rewrites_are_dropped_by_name_and_the_rest_learned_in_order(
    seed: int, engines: int, probers: int
) -> None:
    def taken(delay: Delay) -> list[str]:
        fakes = fleet(delay, engines=engines, probers=probers, wrong=frozenset({1}))
        (books,) = run(fakes, num_prompts=5, sections=REWRITE, num_dropped=5)
        assert sum(len(one.dropped) for one in books.rewrites) == 5
        learned: list[str] = fakes.learners[0].taken
        return learned

    shuffled = taken(random_delays(seed))
    assert shuffled == taken(lambda _: 0.0)
    assert all(name.endswith(".0") for name in shuffled)


def test_a_chunk_that_is_dropped_whole_lets_the_next_ones_pass() -> None:
    fakes = fleet(
        random_delays(5), size=1, wrong=frozenset({0})
    )  # every other chunk is empty
    (books,) = run(fakes, sections=REWRITE | ONE, num_dropped=4)
    assert len(books.rollouts) == 8
    assert len(books.learned) == len(books.scores) == 4


def test_a_step_of_which_nothing_is_left_ends_the_run_with_the_way_out() -> None:
    fakes = fleet(lambda _: 0.0, wrong=frozenset({0, 1}))
    with pytest.raises(
        TopdError, match=r"every rollout was dropped .*loosen rewrite.keep"
    ):
        run(fakes, sections=REWRITE)


def test_fresh_windows_wait_for_all_rollouts_of_their_engine_without_a_deadlock() -> (
    None
):
    recent = RecentDistances(config().windows.divergence, [0.5])
    fakes = fleet(random_delays(6), engines=2)
    run(fakes, sections=RESAMPLE, num_prompts=8, recent=recent, max_chunks_in_flight=1)
    assert sorted(fakes.probers[0].fresh) == [
        (f"0:{position:08d}.0", f"0:{position:08d}.1") for position in range(8)
    ]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), stale=st.integers(1, 3), in_flight=st.integers(1, 4))
def test_steps_begun_ahead_are_learned_in_the_same_order_and_never_too_old(
    seed: int, stale: int, in_flight: int
) -> None:
    sections = {
        "rollout": {"samples_per_prompt": 2, "chunk_size": 2, "max_staleness": stale}
    }

    def learned(delay: Delay) -> tuple[list[str], list[float]]:
        fakes = fleet(delay, engines=2)
        books = run(fakes, steps=5, sections=sections, max_chunks_in_flight=in_flight)
        versions = [{one.policy_version for one in step.rollouts} for step in books]
        assert versions == [{max(0, number - stale)} for number in range(5)]
        learner = fakes.learners[0]
        assert learner.steps_before == sorted(
            learner.steps_before
        )  # no chunk before its step
        return learner.taken, learner.lines

    shuffled = learned(random_delays(seed))
    assert shuffled == learned(lambda _: 0.0)
    assert len(set(shuffled[0])) == 40


def test_a_step_begun_ahead_decodes_while_the_one_before_it_is_learned() -> None:
    seen: list[str] = []

    def note(work: str) -> float:
        seen.append(work)
        return 0.02 if work.startswith("learn") else 0.0

    def probed_before_it_learns(max_staleness: int) -> bool:
        rollout = {
            "samples_per_prompt": 2,
            "chunk_size": 2,
            "max_staleness": max_staleness,
        }
        seen.clear()
        recent = RecentDistances(config().windows.divergence, [0.5])
        run(fleet(note), steps=2, recent=recent, sections={"rollout": rollout})
        return seen.index("probe 00000007.0") < seen.index("learn 00000004.0")

    assert probed_before_it_learns(1)
    assert not probed_before_it_learns(0)


def test_a_teacher_continues_what_it_scored_itself() -> None:
    fakes = fleet(random_delays(7), teachers=3)
    run(fakes, num_prompts=12)
    assert all(sorted(one.continued) == sorted(one.scored) for one in fakes.teachers)
    assert not fakes.probers[0].continued


def test_probe_workers_with_engines_of_their_own_continue_themselves() -> None:
    fakes = fleet(random_delays(8), teachers=2, probers=2)
    run(fakes, num_prompts=6, sections={"probe": {"engine": {"gpus": 1}}})
    assert sum(len(one.continued) for one in fakes.probers) == 12
    assert not any(one.continued for one in fakes.teachers)


def test_every_call_of_every_actor_is_on_the_time_line() -> None:
    (books,) = run(fleet(random_delays(9), engines=2, ranks=2), num_prompts=6)
    calls = Counter((work.kind, work.what) for work in books.works)
    assert calls == {
        ("rollout", "roll_out"): 6,
        ("teacher", "score"): 6,
        ("teacher", "continue_from"): 6,
        ("prober", "probe"): 6,
        ("learner", "accumulate"): 12,
        ("learner", "step"): 2,
    }
    assert {work.step for work in books.works} == {1}
