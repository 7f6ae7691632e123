"""Rollouts that are stopped at their fork: what is trained does not depend on when."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.driver.fleet import (
    DEAD,
    RESPONSE,
    SILENT,
    Delay,
    Fakes,
    Steps,
    config,
    fakes,
    fork_of,
    loop_over,
    random_delays,
)
from topd_ray.actors.calls import Calls
from topd_ray.actors.replacement import FailureBudget, Replacement
from topd_ray.simulate.clock import run_in_virtual_time

STRIDE = 4
STEPS = 3


def trained(
    delay: Delay,
    *,
    stride: int | None = STRIDE,
    engines: int = 1,
    share: float = 0.0,
    seed: int = 0,
    verdict: str = "confident",
    staleness: int = 0,
) -> tuple[Fakes, Steps]:
    """Steps of eight rollouts; a call fails with the probability `share`."""
    takeover = {"verdict": verdict, "quantile": 0.4} | (
        {"stride": stride} if stride else {}
    )
    chosen = config(
        {
            "run": {"method": "takeover"},
            "takeover": takeover,
            "rollout": {
                "samples_per_prompt": 2,
                "chunk_size": 2,
                "num_engines": engines,
                "max_staleness": staleness,
            },
            # few enough that the oldest surprises are forgotten
            "windows": {"divergence": {"history": 12}},
        }
    )
    rng = random.Random(seed)

    def fate() -> str:
        return rng.choice((DEAD, SILENT)) if rng.random() < share else ""

    workers = fakes(delay, engines=engines, some_fork=True)
    steps = Steps(4)

    async def run() -> None:
        fleet = workers.fleet(
            Calls(start_deadline_s=5.0, call_deadline_s=5.0),
            Replacement(FailureBudget(10**6, window_steps=1), lambda *_: None),
            fate,
        )
        await loop_over(chosen, fleet, steps, steps=STEPS).run()

    run_in_virtual_time(run())
    return workers, steps


def what_is_trained(workers: Fakes) -> tuple[list[str], list[str], list[float]]:
    (learner,) = workers.learners
    return learner.taken, learner.taken_over, learner.thresholds


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    most_s=st.sampled_from([0.0, 0.003, 1.0]),
    share=st.sampled_from([0.0, 0.05]),
    engines=st.sampled_from([1, 2]),
    verdict=st.sampled_from(["confident", "surprise"]),
    staleness=st.sampled_from([0, 1]),
)
def test_the_same_is_trained_in_the_same_order_whatever_the_timing(
    seed: int, most_s: float, share: float, engines: int, verdict: str, staleness: int
) -> None:
    slow_s = dict.fromkeys(["read", "decode", "take"], most_s)

    rng = random.Random(seed)

    def delay(work: str) -> float:
        return rng.random() * slow_s.get(work.split()[0], 0.003)

    plain, _ = trained(
        random_delays(0),
        stride=None,
        engines=engines,
        verdict=verdict,
        staleness=staleness,
    )
    early, _ = trained(
        delay,
        engines=engines,
        share=share,
        seed=seed,
        verdict=verdict,
        staleness=staleness,
    )
    assert what_is_trained(early) == what_is_trained(plain)
    names, taken_over, thresholds = what_is_trained(early)
    per_chunk = len(names) // len(thresholds)
    assert taken_over == [
        f"taken over {name}"
        for index, name in enumerate(names)
        if fork_of(name, thresholds[index // per_chunk]) is not None
    ]
    assert (len(set(thresholds)) == STEPS) == (verdict == "surprise")


def test_by_surprise_only_a_step_that_finds_its_own_threshold_stops_no_rollout() -> (
    None
):
    def delay(work: str) -> float:
        return 1.0 if work.startswith("decode") else 0.01

    workers, steps = trained(delay, verdict="surprise")
    (rollout,) = workers.rollouts
    first, *others = steps.receipts
    assert not first.reads
    assert all(receipts.reads for receipts in others)
    assert any(read.forks for receipts in others for read in receipts.reads)
    whole = len(others) * 8 * (RESPONSE - RESPONSE % STRIDE)
    assert 0 < rollout.num_decoded < whole


def test_the_student_decodes_less_and_each_takeover_is_made_once() -> None:
    def delay(work: str) -> float:
        return 1.0 if work.startswith("decode") else 0.01

    workers, steps = trained(delay)
    (rollout,) = workers.rollouts
    (teacher,) = workers.teachers
    forks = {name: fork_of(name) for name in workers.learners[0].taken}
    assert {2, 9} <= set(forks.values())  # else nothing is cut in this test
    whole = len(forks) * (RESPONSE - RESPONSE % STRIDE)
    spared = sum(8 for fork in forks.values() if fork == 2)
    assert rollout.num_decoded == whole - spared
    forked = [name for name, _ in teacher.forked]
    assert sorted(forked) == sorted(n for n, fork in forks.items() if fork is not None)
    num_taken_over = [
        sum(receipt.num_taken_over for receipt in receipts.takeovers)
        for receipts in steps.receipts
    ]
    assert sum(num_taken_over) == len(forked)


def test_the_teacher_goes_on_while_the_student_still_decodes() -> None:
    ended: list[str] = []

    def delay(work: str) -> float:
        ended.append(work)
        return {"decode": 1.0, "take": 0.5}.get(work.split()[0], 0.01)

    trained(delay)
    first_takeover = next(i for i, work in enumerate(ended) if work.startswith("take"))
    last_decoding = max(i for i, w in enumerate(ended) if w == "decode 12")
    assert first_takeover < last_decoding
