import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.driver.fleet import (
    Delay,
    Fakes,
    Steps,
    config,
    fakes,
    loop_over,
    names_of,
    random_delays,
)
from topd_ray.actors.calls import Calls
from topd_ray.driver.ledger import Ledger
from topd_ray.errors import DeadlineError, TopdError
from topd_ray.records.receipts import StepReceipts
from topd_ray.windows import RecentDistances


def run(
    workers: Fakes,
    *,
    steps: int = 1,
    num_prompts: int = 4,
    recent: RecentDistances | None = None,
    deadline_s: float = 5.0,
    sections: dict[str, Any] | None = None,
    num_dropped: int = 0,
    **cluster: Any,
) -> list[StepReceipts]:
    ranks = {"learner": {"model": "s", "num_ranks": len(workers.learners)}}
    chosen = config(ranks | (sections or {}), **cluster)
    ledger = Ledger()
    calls = Calls(start_deadline_s=deadline_s, call_deadline_s=deadline_s)
    hooks = Steps(num_prompts)

    async def go() -> None:
        fleet = workers.fleet(calls)
        loop = loop_over(
            chosen, fleet, hooks, steps=steps, ledger=ledger, recent=recent
        )
        await asyncio.wait_for(loop.run(), 30)

    asyncio.run(go())
    assert ledger.num_dispatched == steps * num_prompts * 2
    assert ledger.num_consumed == ledger.num_dispatched - num_dropped
    assert ledger.dropped.total() == num_dropped
    return hooks.receipts


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
        workers = fakes(
            delay, engines=engines, teachers=teachers, probers=probers, ranks=ranks
        )
        run(workers, steps=2, num_prompts=5, max_chunks_in_flight=in_flight)
        return [learner.taken for learner in workers.learners]

    shuffled = order(random_delays(seed))
    assert shuffled == order(lambda _: 0.0)
    names = names_of(shuffled)
    assert len(set(names)) == len(names) == 20
    shares = [len(taken) for taken in shuffled]
    assert max(shares) - min(shares) <= 2  # as many rollouts, all of one length


def test_a_slow_engine_does_not_starve_behind_a_fast_one() -> None:
    def slow_first(work: str) -> float:
        return 0.05 if work == "rollout 00000006.0" else 0.0

    run(fakes(slow_first, engines=2), num_prompts=12, max_chunks_in_flight=1)


def test_an_early_chunk_is_learned_while_a_later_one_still_decodes() -> None:
    seen: list[str] = []

    def note(work: str) -> float:
        seen.append(work)
        return 0.3 if work == "rollout 00000003.0" else 0.0

    recent = RecentDistances(config().windows.divergence, [0.5])
    run(fakes(note), recent=recent)
    last = seen.index("score 00000003.0")
    assert all(seen.index(f"learn 0000000{p}.0") < last for p in range(3))


def test_the_first_step_is_judged_by_the_threshold_of_all_its_own_windows() -> None:
    workers = fakes(random_delays(1), probers=2)
    run(workers)
    assert (
        workers.learners[0].thresholds == [0.5] * 4
    )  # median of the sample indices 0 and 1


def test_later_steps_are_judged_by_the_threshold_from_before_them() -> None:
    workers = fakes(random_delays(2))
    recent = RecentDistances(config().windows.divergence, [7.0])
    run(workers, recent=recent, steps=2)
    assert workers.learners[0].thresholds[:4] == [7.0] * 4
    assert (
        workers.learners[0].thresholds[4:] == [1.0] * 4
    )  # median of 7 and four each of 0 and 1


def test_samples_of_one_prompt_are_dealt_to_all_engines() -> None:
    (receipts,) = run(
        fakes(lambda _: 0.0, size=1, engines=2), num_prompts=1, sections=ONE
    )
    assert [receipt.rollout_ids for receipt in receipts.rollouts] == [
        ("00000000.0",),
        ("00000000.1",),
    ]


def test_one_teacher_serves_one_call_at_a_time() -> None:
    workers = fakes(random_delays(3), teachers=2)
    run(workers, num_prompts=10)
    assert [teacher.most_busy for teacher in workers.teachers] == [1, 1]


def test_receipts_are_in_the_order_of_the_learner() -> None:
    (receipts,) = run(fakes(random_delays(4), engines=2, ranks=2), num_prompts=6)
    firsts = [receipt.rollout_ids[0][:8] for receipt in receipts.rollouts]
    assert firsts == [
        "00000000",
        "00000003",
        "00000001",
        "00000004",
        "00000002",
        "00000005",
    ]
    assert len(receipts.scores) == len(receipts.probes) == len(receipts.rounds) == 6
    assert all(len(learned.receipts) == 2 for learned in receipts.rounds)


def test_an_engine_that_fails_mid_stream_ends_the_step_with_its_own_error() -> None:
    with pytest.raises(RuntimeError, match="engine burst"):
        run(fakes(lambda _: 0.0, fail_at=2))


def test_a_call_that_never_returns_is_named_when_its_deadline_passes() -> None:
    def wedged(work: str) -> float:
        return 60.0 if work == "probe 00000002.0" else 0.0

    with pytest.raises(
        DeadlineError, match=r"prober\[0\] owed the result of probe for 0.2 s"
    ):
        run(fakes(wedged), deadline_s=0.2)


ONE = {"rollout": {"samples_per_prompt": 2, "chunk_size": 1}}
REWRITE = {"run": {"method": "trd"}, "rewrite": {"keep": "pass"}}
RESAMPLE = {"probe": {"student": "resample"}}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), engines=st.integers(1, 3), probers=st.integers(1, 3))
def test_unwanted_rewrites_are_dropped_by_name_and_the_rest_learned_in_order(
    seed: int, engines: int, probers: int
) -> None:
    def taken(delay: Delay) -> list[str]:
        workers = fakes(delay, engines=engines, probers=probers, wrong=frozenset({1}))
        (receipts,) = run(workers, num_prompts=5, sections=REWRITE, num_dropped=5)
        assert sum(len(rewrite.dropped) for rewrite in receipts.rewrites) == 5
        learned: list[str] = workers.learners[0].taken
        return learned

    shuffled = taken(random_delays(seed))
    assert shuffled == taken(lambda _: 0.0)
    assert all(name.endswith(".0") for name in shuffled)


def test_a_chunk_that_is_dropped_whole_lets_the_next_ones_pass() -> None:
    workers = fakes(
        random_delays(5), size=1, wrong=frozenset({0})
    )  # every other chunk is empty
    (receipts,) = run(workers, sections=REWRITE | ONE, num_dropped=4)
    assert len(receipts.rollouts) == 8
    assert len(receipts.rounds) == len(receipts.scores) == 4


def test_a_step_of_which_nothing_is_left_ends_the_run_with_the_way_out() -> None:
    workers = fakes(lambda _: 0.0, wrong=frozenset({0, 1}))
    with pytest.raises(
        TopdError, match=r"every rollout was dropped .*loosen rewrite.keep"
    ):
        run(workers, sections=REWRITE)


TAKEOVER = {"run": {"method": "takeover"}}
BY_DISTANCE = TAKEOVER | {"takeover": {"verdict": "d_ot"}}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), engines=st.integers(1, 3))
def test_takeovers_go_with_their_rollouts_and_unwanted_ones_are_dropped_by_name(
    seed: int, engines: int
) -> None:
    def taken(delay: Delay) -> list[str]:
        workers = fakes(delay, engines=engines, wrong=frozenset({1}))
        (receipts,) = run(workers, num_prompts=5, sections=TAKEOVER, num_dropped=5)
        assert sum(receipt.num_taken_over for receipt in receipts.takeovers) == 10
        assert not receipts.probes
        learned: list[str] = workers.learners[0].taken
        return learned

    shuffled = taken(random_delays(seed))
    assert shuffled == taken(lambda _: 0.0)
    assert all(name.endswith(".0") for name in shuffled)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_forks_by_distance_are_judged_by_one_threshold_a_step(seed: int) -> None:
    """The first step takes it from its own probes, so every takeover waits for them."""
    workers = fakes(random_delays(seed), engines=2)
    first, _ = run(workers, steps=2, num_prompts=4, sections=BY_DISTANCE)
    (teacher,) = workers.teachers
    thresholds = [threshold for _, threshold in teacher.forked]
    assert len(thresholds) == 16
    assert len(set(thresholds[:8])) == len(set(thresholds[8:])) == 1
    assert thresholds == workers.learners[0].thresholds or thresholds[0] > 0
    assert len(first.probes) == len(first.takeovers)


def test_a_takeover_that_needs_no_distance_does_not_wait_for_the_step_before() -> None:
    seen: list[str] = []

    def note(work: str) -> float:
        seen.append(work)
        return 0.02 if work.startswith("learn") else 0.0

    stale = {"rollout": {"samples_per_prompt": 2, "chunk_size": 2, "max_staleness": 1}}
    run(fakes(note), steps=2, num_prompts=1, sections=TAKEOVER | stale)
    learned = [work.startswith("learn") for work in seen]
    ahead = seen.index("take over 00000001.0")
    assert sum(learned[:ahead]) <= 1


def test_fresh_windows_wait_for_all_rollouts_of_their_engine_without_a_deadlock() -> (
    None
):
    recent = RecentDistances(config().windows.divergence, [0.5])
    workers = fakes(random_delays(6), engines=2)
    run(
        workers, sections=RESAMPLE, num_prompts=8, recent=recent, max_chunks_in_flight=1
    )
    assert sorted(workers.probers[0].fresh) == [
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
        workers = fakes(delay, engines=2)
        receipts = run(
            workers, steps=5, sections=sections, max_chunks_in_flight=in_flight
        )
        versions = [
            {chunk.policy_version for chunk in step.rollouts} for step in receipts
        ]
        assert versions == [{max(0, number - stale)} for number in range(5)]
        learner = workers.learners[0]
        assert learner.steps_before == sorted(
            learner.steps_before
        )  # no chunk before its step
        return learner.taken, learner.thresholds

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
        run(fakes(note), steps=2, recent=recent, sections={"rollout": rollout})
        return seen.index("probe 00000007.0") < seen.index("learn 00000004.0")

    assert probed_before_it_learns(1)
    assert not probed_before_it_learns(0)


def test_a_teacher_continues_what_it_scored_itself() -> None:
    workers = fakes(random_delays(7), teachers=3)
    run(workers, num_prompts=12)
    assert all(sorted(one.continued) == sorted(one.scored) for one in workers.teachers)
    assert not workers.probers[0].continued


def test_probe_workers_with_engines_of_their_own_continue_themselves() -> None:
    workers = fakes(random_delays(8), teachers=2, probers=2)
    run(workers, num_prompts=6, sections={"probe": {"engine": {"gpus": 1}}})
    assert sum(len(one.continued) for one in workers.probers) == 12
    assert not any(one.continued for one in workers.teachers)


def test_every_call_of_every_actor_is_on_the_time_line() -> None:
    (receipts,) = run(fakes(random_delays(9), engines=2, ranks=2), num_prompts=6)
    calls = Counter((work.kind, work.what) for work in receipts.works)
    assert calls == {
        ("rollout", "roll_out"): 6,
        ("teacher", "score"): 6,
        ("teacher", "continue_from"): 6,
        ("prober", "probe"): 6,
        ("learner", "accumulate"): 12,
        ("learner", "step"): 2,
    }
    assert {work.step for work in receipts.works} == {1}


def test_with_one_rollout_a_chunk_two_ranks_still_share_the_work() -> None:
    workers = fakes(random_delays(10), ranks=2, size=1)
    (receipts,) = run(workers, sections=ONE)
    assert [len(learner.taken) for learner in workers.learners] == [4, 4]
    assert len(receipts.rounds) == 4  # two chunks each


def test_the_last_round_has_work_for_every_rank_too() -> None:
    """Eight rollouts for three ranks: rounds of 3 and 5, not of 3, 3 and 2."""
    workers = fakes(random_delays(12), ranks=3, size=1)
    run(workers, num_prompts=4, sections=ONE)
    shares = [learner.shares for learner in workers.learners]
    assert [sum(sizes) for sizes in zip(*shares, strict=True)] == [3, 5]
    assert all(size for sizes in shares for size in sizes)


def test_a_step_whose_last_round_is_short_leaves_a_rank_an_empty_share() -> None:
    workers = fakes(random_delays(11), ranks=2, size=1, wrong=frozenset({1}))
    sections = REWRITE | ONE
    run(workers, num_prompts=3, sections=sections, num_dropped=3)
    assert sorted(len(learner.taken) for learner in workers.learners) == [1, 2]
    assert len({learner.steps for learner in workers.learners}) == 1


def test_a_first_step_with_more_candidates_than_the_history_is_judged_by_all() -> None:
    """Which probes came last must not matter."""
    windows = {"divergence": {"quantile": 0.5, "history": 3}}

    def threshold(seed: int) -> float:
        workers = fakes(random_delays(seed), engines=2, teachers=3, probers=3)
        run(workers, num_prompts=6, sections={"windows": windows})
        return workers.learners[0].thresholds[0]

    assert {threshold(seed) for seed in range(5)} == {0.5}
