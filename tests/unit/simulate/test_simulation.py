import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topd_ray.commands.plan import grown, scaled
from topd_ray.config import Config, load_config, parse_config
from topd_ray.errors import TopdError, UserError
from topd_ray.records.timeline import Work
from topd_ray.simulate.clock import run_in_virtual_time
from topd_ray.simulate.fit import fit, own_seconds
from topd_ray.simulate.lane import Lane
from topd_ray.simulate.machine import Device, Engine
from topd_ray.simulate.placement import best_placement
from topd_ray.simulate.rates import (
    Decode,
    Forward,
    Rates,
    Workload,
    continuous_batching,
    long_tailed,
)
from topd_ray.simulate.roofline import Hardware, assumed_workload, roofline_rates
from topd_ray.simulate.simulation import simulate

BY_TURNS = Path(__file__).parents[3] / "configs" / "qwen3-30b-a3b-to-4b-4x40gb.yaml"


def config(**sections: Any) -> Config:
    values: dict[str, Any] = {
        "prompts": {"path": "p", "per_step": 4, "max_tokens": 20},
        "teacher": {"model": "t"},
        "learner": {"model": "s"},
        "rollout": {
            "samples_per_prompt": 2,
            "chunk_size": 2,
            "max_response_tokens": 100,
        },
    }
    return parse_config(
        {
            name: values.get(name, {}) | sections.get(name, {})
            for name in values | sections
        },
        source="test",
    )


def paper() -> Config:
    return config(
        prompts={"per_step": 1, "max_tokens": 800},
        teacher={"model": "Qwen/Qwen3-30B-A3B-Instruct-2507", "engine": {"gpus": 1}},
        learner={
            "model": "Qwen/Qwen3-4B-Instruct-2507",
            "gpus": 1,
            "gradient_checkpointing": True,
        },
        rollout={
            "samples_per_prompt": 4,
            "max_response_tokens": 8000,
            "chunk_size": 1,
            "engine": {"gpus": 1},
        },
        probe={"engine": {"gpus": 1}},
    )


FREE = Rates(
    roll_out=Decode(step_s=0.0),
    prompt_s=0.0,
    score=Forward(),
    continue_from=Decode(step_s=0.0),
    continue_call_s=0.0,
    transport_call_s=0.0,
    transport_s=0.0,
    learn=Forward(),
    step_s=0.0,
    publish_s=0.0,
    update_s=0.0,
    latency_s=0.0,
)
EVEN = Workload(quantiles=(10.0, 10.0), prompt_tokens=0, window_tokens=5)


def rates(**costs: Any) -> Rates:
    return replace(FREE, **costs)


def test_virtual_time_passes_at_once_and_in_order() -> None:
    async def go() -> tuple[list[str], float]:
        seen = []

        async def wait(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append(name)

        await asyncio.gather(
            wait("slow", 5e6), wait("quick", 1.0), wait("middle", 3600.0)
        )
        return seen, asyncio.get_running_loop().time()

    seen, ended_s = run_in_virtual_time(go())
    assert seen == ["quick", "middle", "slow"]
    assert ended_s == pytest.approx(5e6)


def test_waiting_for_nothing_is_an_error_instead_of_a_hang() -> None:
    async def go() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(TopdError, match="nothing is left to come"):
        run_in_virtual_time(go())


@given(
    asked=st.lists(
        st.tuples(st.floats(0, 5), st.floats(0.01, 5)), min_size=1, max_size=8
    ),
    capacity=st.integers(1, 4),
)
def test_a_device_shares_evenly_and_loses_no_work(
    asked: list[tuple[float, float]], capacity: int
) -> None:
    """Against a slow clock of small steps."""

    async def go() -> list[float]:
        device, ended = Device(capacity), [0.0] * len(asked)

        async def piece(index: int, at_s: float, seconds: float) -> None:
            await asyncio.sleep(at_s)
            await device.work(seconds)
            ended[index] = asyncio.get_running_loop().time()

        await asyncio.gather(*(piece(i, *one) for i, one in enumerate(asked)))
        return ended

    now_s, tick_s = 0.0, 0.005
    left = [seconds for _, seconds in asked]
    slow = [0.0] * len(asked)
    while any(one > 0 for one in left):
        there = [
            i for i, (at_s, _) in enumerate(asked) if at_s <= now_s and left[i] > 0
        ]
        now_s += tick_s
        for i in there:
            left[i] -= tick_s * min(1.0, capacity / len(there))
            slow[i] = now_s
    assert run_in_virtual_time(go()) == pytest.approx(slow, abs=0.1)


def test_scoring_comes_before_continuations_that_wait() -> None:
    async def go() -> list[tuple[str, float]]:
        engine, ended = Engine(Device(1)), list[tuple[str, float]]()

        async def piece(name: str, seconds: float, *, urgent: bool) -> None:
            await engine.work(seconds, urgent=urgent)
            ended.append((name, round(asyncio.get_running_loop().time(), 3)))

        backfill = asyncio.ensure_future(piece("continue", 1.0, urgent=False))
        await asyncio.sleep(0.5)
        await piece("score", 0.2, urgent=True)
        await backfill
        return ended

    (first, first_s), (second, second_s) = run_in_virtual_time(go())
    assert (first, second) == ("score", "continue")
    assert 0.7 <= first_s <= 0.73  # at most one slice later than asked for
    assert second_s == pytest.approx(1.2)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    slots=st.integers(1, 8),
)
def test_continuous_batching_equals_counting_every_step(
    lengths: list[int], slots: int
) -> None:
    decode = Decode(step_s=1.0, seq_s=0.1, context_s=0.01)
    left, running, context, slow_s = list(enumerate(lengths)), dict[int, int](), 7, 0.0
    held = dict[int, int]()
    while left or running:
        while left and len(running) < slots:
            index, length = left.pop(0)
            running[index], held[index] = length, context
        slow_s += 1.0 + 0.1 * len(running) + 0.01 * sum(held[i] for i in running)
        for index in list(running):
            running[index] -= 1
            held[index] += 1
            if not running[index]:
                del running[index]
    pieces = list(continuous_batching(decode, lengths, [7] * len(lengths), slots=slots))
    assert sum(seconds for seconds, _ in pieces) == pytest.approx(slow_s)
    assert sorted(i for _, ended in pieces for i in ended) == list(range(len(lengths)))


def test_a_long_tail_has_the_mean_asked_for() -> None:
    quantiles = long_tailed(mean=4800, spread=0.5, longest=8000)
    assert sum(quantiles) / len(quantiles) == pytest.approx(4800, rel=1e-6)
    assert max(quantiles) == 8000
    assert list(quantiles) == sorted(quantiles)


def test_an_error_in_a_simulated_actor_reaches_the_caller() -> None:
    async def broken() -> None:
        raise ValueError("no such rate")

    async def items() -> AsyncIterator[int]:
        yield 1
        raise ValueError("no such rate")

    async def go() -> list[int]:
        lane = Lane(0.0)
        with pytest.raises(ValueError, match="no such rate"):
            await lane.submit(broken)
        taken = lane.stream(items, room=1)
        first = await anext(taken)
        with pytest.raises(ValueError, match="no such rate"):
            await anext(taken)
        return [first]

    assert run_in_virtual_time(go()) == [1]


def test_calls_of_an_actor_are_served_in_the_order_of_submission() -> None:
    async def go() -> list[str]:
        lane = Lane(0.1)
        served = []

        async def call(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            served.append(name)

        names = ["slow", "quick", "middle"]
        calls = [
            lane.submit(partial(call, name, seconds))
            for name, seconds in zip(names, (3.0, 0.0, 1.0), strict=True)
        ]
        await asyncio.gather(*calls)
        return served

    assert run_in_virtual_time(go()) == ["slow", "quick", "middle"]


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"method": "trd"}},
        {"probe": {"engine": {"cpus": 1}}, "run": {"method": "trd"}},
    ],
)
def test_rewrites_are_decoded_by_the_teacher_before_it_reads_them(
    sections: dict[str, Any],
) -> None:
    chosen = rates(continue_from=Decode(step_s=0.1), score=Forward(call_s=0.2))
    trd = simulate(config(**sections), chosen, EVEN, cores=8, steps=2)
    # four chunks are rewritten in ten steps each, one after the other
    assert trd.step_s == pytest.approx(4 * (10 * 0.1 + 0.2) + 0.2, rel=0.2)


def test_a_student_that_is_stopped_decodes_up_to_the_forks_alone() -> None:
    decode = rates(roll_out=Decode(step_s=0.1))
    workload = replace(EVEN, taken_over=0.4)
    found = [
        simulate(
            config(run={"method": "takeover"}, takeover={"stride": stride}),
            decode,
            workload,
            cores=2,
        )
        for stride in (None, 16)
    ]
    whole, stopped = found
    assert stopped.student_tokens == pytest.approx(0.6 * whole.student_tokens)
    assert stopped.step_s == pytest.approx(0.6 * whole.step_s, rel=0.01)


def test_takeovers_are_decoded_by_the_teacher_that_has_scored() -> None:
    chosen = rates(continue_from=Decode(step_s=0.1), score=Forward(call_s=0.2))

    def step_s(**takeover: Any) -> float:
        method = config(run={"method": "takeover"}, takeover=takeover)
        workload = replace(EVEN, taken_over=0.5)
        return simulate(method, chosen, workload, cores=8, steps=2).step_s

    # four chunks; in each five of ten tokens, or two, are decoded behind the score
    assert step_s() == pytest.approx(4 * (5 * 0.1 + 0.2), rel=0.2)
    assert step_s(tokens=2) == pytest.approx(4 * (2 * 0.1 + 0.2), rel=0.2)


def test_given_responses_cost_no_decoding() -> None:
    chosen = rates(roll_out=Decode(step_s=100.0), learn=Forward(call_s=0.5))
    kd = config(run={"method": "kd"}, rollout={"samples_per_prompt": 1})
    assert simulate(kd, chosen, EVEN, cores=8, steps=2).step_s == pytest.approx(1.0)


def test_stages_that_follow_each_other_add_up_and_chunks_overlap() -> None:
    """One engine, four chunks of two; by hand.

    All rollouts end at once after 10 steps of .1 s. Then each chunk is scored in .2 s
    and learned in .5 s: the first is learned from 1.2 s on, the last one ends at 1.2 +
    4 x .5.
    """
    chosen = rates(
        roll_out=Decode(step_s=0.1),
        score=Forward(call_s=0.2),
        learn=Forward(call_s=0.5),
    )
    predicted = simulate(config(run={"method": "opd"}), chosen, EVEN, cores=8, steps=3)
    assert predicted.step_s == pytest.approx(1.0 + 0.2 + 4 * 0.5)
    assert predicted.student_tokens == 4 * 2 * 10
    assert predicted.bottleneck == "learner"
    assert predicted.busy == pytest.approx(
        {"rollout": 1.0 / 3.2, "teacher": 0.8 / 3.2, "learner": 2.0 / 3.2}
    )


def test_cores_that_are_shared_stretch_what_overlaps_only() -> None:
    chosen = rates(roll_out=Decode(step_s=0.1), learn=Forward(call_s=0.5), step_s=0.25)
    opd = config(run={"method": "opd"})
    alone = simulate(opd, chosen, EVEN, cores=8, steps=2).step_s
    assert simulate(opd, chosen, EVEN, cores=1, steps=2).step_s == pytest.approx(alone)
    busy = rates(
        roll_out=Decode(step_s=0.1),
        score=Forward(call_s=0.5),
        learn=Forward(call_s=0.5),
    )
    total_s = 1.0 + 4 * 0.5 + 4 * 0.5
    assert simulate(opd, busy, EVEN, cores=1, steps=2).step_s == pytest.approx(total_s)
    assert simulate(opd, busy, EVEN, cores=2, steps=2).step_s == pytest.approx(
        1 + 5 * 0.5
    )


def test_probes_cost_what_their_engine_has_to_do() -> None:
    """Without lambda there is nothing to probe; with it, each chunk has two windows of
    5 tokens.
    """
    chosen = rates(
        continue_from=Decode(step_s=0.1), transport_s=0.05, score=Forward(token_s=0.01)
    )
    opd = simulate(config(run={"method": "opd"}), chosen, EVEN, cores=8, steps=2)
    topd = simulate(config(), chosen, EVEN, cores=8, steps=2)
    assert opd.step_s == pytest.approx(4 * 0.2)
    # the teacher scores and continues, then the last chunk's transport is left
    assert topd.step_s == pytest.approx(4 * (0.2 + 5 * 0.1) + 2 * 0.05)
    own = simulate(
        config(probe={"engine": {"cpus": 1}}), chosen, EVEN, cores=8, steps=2
    )
    a_probe_s = 0.2 + 5 * 0.1 + 2 * 0.05  # its own engine reads the prefixes first
    assert own.step_s == pytest.approx(0.2 + 4 * a_probe_s)
    assert (topd.bottleneck, own.bottleneck) == ("teacher", "prober")


def test_ranks_share_a_chunk_and_meet_in_every_micro_batch() -> None:
    chosen = rates(learn=Forward(token_s=0.1))
    one = simulate(config(run={"method": "opd"}), chosen, EVEN, cores=8, steps=2)
    two = config(run={"method": "opd"}, learner={"num_ranks": 2, "zero_stage": 2})
    assert one.step_s == pytest.approx(8 * 10 * 0.1)
    assert simulate(two, chosen, EVEN, cores=8, steps=2).step_s == pytest.approx(
        4 * 10 * 0.1
    )
    odd = config(
        run={"method": "opd"},
        rollout={"chunk_size": 1},
        learner=two.learner.model_dump(),
    )
    single = simulate(odd, chosen, EVEN, cores=8, steps=2)
    assert single.step_s == pytest.approx(4 * 10 * 0.1)  # two chunks go together
    assert single.busy["learner"] == pytest.approx(1.0)


def test_rates_are_found_again_in_the_trace_that_they_made() -> None:
    """A simulated run is fitted like a real one; then another setting is predicted."""
    true = rates(
        roll_out=Decode(step_s=0.01, seq_s=0.0005),
        prompt_s=0.0005,
        score=Forward(call_s=0.05, token_s=0.0005),
        learn=Forward(call_s=0.02, token_s=0.001),
        step_s=0.1,
        publish_s=0.05,
        update_s=0.03,
        latency_s=0.004,
    )
    workload = Workload(
        quantiles=long_tailed(mean=50, spread=0.4, longest=100),
        prompt_tokens=10,
        window_tokens=5,
    )
    small = config(
        run={"method": "opd"}, prompts={"per_step": 16}, rollout={"chunk_size": 8}
    )
    run = simulate(small, true, workload, cores=2, steps=20)
    fitted = fit(small, run.works, [run.step_s] * 19, cores=2, prompt_tokens=10)
    assert fitted.rates.score.token_s == pytest.approx(true.score.token_s, rel=0.05)
    assert fitted.rates.learn.call_s == pytest.approx(true.learn.call_s, rel=0.2)
    assert fitted.rates.roll_out.step_s == pytest.approx(true.roll_out.step_s, rel=0.15)
    assert fitted.rates.step_s == pytest.approx(true.step_s, rel=0.01)
    for change in (
        {"samples_per_prompt": 4},
        {"chunk_size": 4},
        {"max_response_tokens": 50},
    ):
        other = config(
            run={"method": "opd"},
            prompts={"per_step": 16},
            rollout={"chunk_size": 8} | change,
        )
        real = simulate(other, true, workload, cores=2).step_s
        predicted = simulate(other, fitted.rates, fitted.workload, cores=2).step_s
        assert predicted == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("method", ["trd", "takeover"])
def test_the_teachers_decoding_is_found_again_in_the_trace_that_it_made(
    method: str,
) -> None:
    true = rates(
        roll_out=Decode(step_s=0.01, seq_s=0.0005),
        prompt_s=0.0005,
        score=Forward(call_s=0.05, token_s=0.0005),
        continue_from=Decode(step_s=0.02, seq_s=0.002),
        learn=Forward(call_s=0.02, token_s=0.001),
        step_s=0.1,
    )
    workload = Workload(
        quantiles=long_tailed(mean=50, spread=0.4, longest=100),
        prompt_tokens=10,
        window_tokens=5,
        taken_over=0.4,
    )

    def chosen(**rollout: int) -> Config:
        return config(
            run={"method": method},
            prompts={"per_step": 16},
            rollout={"chunk_size": 8} | rollout,
        )

    run = simulate(chosen(), true, workload, cores=2, steps=20)
    fitted = fit(chosen(), run.works, [run.step_s] * 19, cores=2, prompt_tokens=10)
    if method == "takeover":
        # Scoring goes first inside the engine, so a takeover's time is not its own.
        assert fitted.workload.taken_over == pytest.approx(0.4, rel=0.05)
    else:
        decode = fitted.rates.continue_from
        assert decode.step_s == pytest.approx(true.continue_from.step_s, rel=0.1)
    for change in ({}, {"samples_per_prompt": 4}, {"chunk_size": 4}):
        real = simulate(chosen(**change), true, workload, cores=2).step_s
        predicted = simulate(
            chosen(**change), fitted.rates, fitted.workload, cores=2
        ).step_s
        assert predicted == pytest.approx(real, rel=0.1)


def test_a_works_own_seconds_are_its_share_of_the_cores() -> None:
    works = [
        Work("a", "x", 0, None, 0.0, 4.0),
        Work("b", "x", 0, None, 1.0, 3.0),
        Work("c", "x", 0, None, 2.0, 3.0),
    ]
    assert own_seconds(works, cores=2) == pytest.approx([3 + 2 / 3, 1 + 2 / 3, 2 / 3])
    assert own_seconds(works, cores=3) == pytest.approx([4.0, 2.0, 1.0])


def test_a_run_that_stopped_its_rollouts_is_refused() -> None:
    run = simulate(config(), rates(roll_out=Decode(step_s=0.1)), EVEN, cores=2, steps=4)
    last = run.works[-1].step
    read = Work("teacher[0]", "read_ahead", last, None, 0.0, 1.0)
    with pytest.raises(UserError, match=r"stopped its rollouts.*stride=null"):
        fit(config(), [*run.works, read], [1.0] * 4, cores=2, prompt_tokens=0)


def test_a_run_that_is_too_short_is_refused() -> None:
    run = simulate(config(), rates(roll_out=Decode(step_s=0.1)), EVEN, cores=2, steps=2)
    with pytest.raises(UserError, match="1 steady steps"):
        fit(config(), run.works, [run.step_s], cores=2, prompt_tokens=0)


def test_the_roofline_decodes_at_memory_speed_and_trains_at_arithmetic_speed() -> None:
    """Bounds that no efficiency can break: 8 GB of weights, 4 x 2 x 4.02e9 operations a
    token.
    """
    hardware = Hardware()
    found = roofline_rates(paper(), hardware)
    assert found.roll_out.step_s > 8.04e9 / hardware.memory_bytes_s
    assert found.learn.token_s > 8 * 4.02e9 / hardware.flops
    assert found.continue_from.steps_s(1, 256, 0) > 61e9 / hardware.memory_bytes_s
    assert found.continue_from.steps_s(1, 1, 0) < 0.2 * found.continue_from.steps_s(
        1, 256, 0
    )


def test_ranks_that_share_a_sequence_share_its_arithmetic() -> None:
    alone = paper()
    learner = {"num_ranks": 2, "sequence_parallel": 2}
    shared = alone.model_copy(
        update={"learner": alone.learner.model_copy(update=learner)}
    )
    one, two = (roofline_rates(c, Hardware()).learn for c in (alone, shared))
    assert two.token_s == one.token_s / 2
    assert two.pair_s == one.pair_s / 2


def test_an_unknown_model_has_no_roofline() -> None:
    with pytest.raises(UserError, match="--from RUN"):
        roofline_rates(config(), Hardware())


def test_a_placement_uses_all_gpus_and_more_of_them_do_more_in_the_same_time() -> None:
    chosen, hardware = paper(), Hardware()

    def placed(gpus: int) -> Any:
        some = grown(chosen, gpus / 4)
        return best_placement(
            some,
            lambda one: roofline_rates(one, hardware),
            assumed_workload(chosen),
            gpus=gpus,
        )

    four, eight = placed(4), placed(8)
    for found, gpus in ((four, 4), (eight, 8)):
        counts = found.config.rollout.num_engines, found.config.teacher.num_engines
        assert sum(counts) + found.config.probe.num_workers <= gpus
    assert eight.prediction.tokens_per_s > 1.5 * four.prediction.tokens_per_s
    with pytest.raises(UserError, match="too few"):
        placed(2)


def test_more_gpus_than_a_batch_can_use_stay_idle_rather_than_in_the_way() -> None:
    chosen, hardware = paper(), Hardware()
    rows = scaled(
        chosen,
        lambda one: roofline_rates(one, hardware),
        assumed_workload(chosen),
        (4, 8, 16, 32),
        weak=False,
    )
    seconds = [row.prediction.step_s for row in rows]
    assert seconds == sorted(seconds, reverse=True)
    assert [row.gpus for row in rows] == [4, 8, 16, 32]
    last = rows[-1]
    assert last.num_idle > 0  # four rollouts
    assert last.described.endswith(f"{last.num_idle} idle")


def test_adapters_make_the_optimizers_step_free_and_the_backward_pass_cheaper() -> None:
    lora = "learner.lora={rank: 16, alpha: 32.0, targets: [q_proj]}"
    whole, adapted = (
        roofline_rates(load_config(BY_TURNS, overrides), Hardware())
        for overrides in ([], [lora])
    )
    assert adapted.step_s == 0.0 < whole.step_s
    # Forward, recomputed forward and the gradient of the inputs, of four such parts.
    # The products of the teacher's head stay.
    head = 2 * 2048 * 151_936 / (989e12 * 0.4)
    ratio = (adapted.learn.token_s - head) / (whole.learn.token_s - head)
    assert ratio == pytest.approx(3 / 4)
    assert adapted.learn.call_s < whole.learn.call_s  # no gradient is reduced
    assert adapted.learner_move_s == pytest.approx(whole.learner_move_s / 9)


def test_roles_that_take_turns_are_never_at_work_at_the_same_time() -> None:
    config = load_config(BY_TURNS)
    rates = roofline_rates(config, Hardware())
    workload = assumed_workload(config)
    by_turns = simulate(config, rates, workload, cores=48, steps=2)
    spans = sorted(
        (work.began_s, work.ended_s, work.kind)
        for work in by_turns.works
        if work.what not in ("sleep", "wake") and work.kind != "prober"
    )
    for (_, ended_s, kind), (began_s, _, next_kind) in pairwise(spans):
        assert kind == next_kind or ended_s <= began_s
    assert {work.what for work in by_turns.works} >= {"sleep", "wake"}
    together = load_config(BY_TURNS, ["cluster.turns=false"])
    prediction = simulate(together, rates, workload, cores=48, steps=2)
    assert by_turns.step_s > prediction.step_s
