"""Micro-batches: every token once, and each weight, signal and target where it
belongs.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.make import probes, scored
from topd_ray.config import ObjectiveConfig
from topd_ray.messages import (
    HiddenSignal,
    ProbeSet,
    SampledSignal,
    ScoredRollout,
    TopkSignal,
    TrainBatch,
)
from topd_ray.windows import pack


def packed(
    rollouts: Sequence[ScoredRollout],
    found: Sequence[ProbeSet] | None = None,
    *,
    threshold: float = 0.5,
    token_budget: int = 100,
    at_least: int = 1,
    **objective: Any,
) -> list[TrainBatch]:
    parts = {"lambda_traj": 0.3 if found else 0.0} | objective
    return pack(
        rollouts,
        found,
        threshold=threshold,
        objective=ObjectiveConfig.model_validate(parts),
        token_budget=token_budget,
        run_seed=0,
        at_least=at_least,
    )


def segments(batch: TrainBatch) -> list[tuple[int, int, int]]:
    """(length, trunk, branch) of each."""
    return list(
        zip(
            *(x.tolist() for x in (batch.length_S, batch.trunk_S, batch.branch_S)),
            strict=True,
        )
    )


def test_a_batch_holds_prompt_and_response_but_for_the_last_token() -> None:
    one = scored(prompt_length=3, length=5)
    (batch,) = packed([one])
    expected = [*one.rollout.prompt_ids_P, *one.rollout.response_ids_N[:-1]]
    assert batch.input_ids_L.tolist() == expected
    assert segments(batch) == [(7, 0, 0)]
    assert batch.response_ids_T.tolist() == one.rollout.response_ids_N.tolist()
    assert batch.weight_T.tolist() == [1] * 5


def test_each_response_token_is_predicted_from_the_token_before_it() -> None:
    short, long = (
        scored("a", prompt_length=2, length=3),
        scored("b", prompt_length=3, length=6),
    )
    (batch,) = packed([short, long])
    assert batch.rollout_ids == ("b", "a")  # longest first
    before = np.concatenate(
        [
            np.concatenate(
                [one.rollout.prompt_ids_P[-1:], one.rollout.response_ids_N[:-1]]
            )
            for one in (long, short)
        ]
    )
    assert batch.input_ids_L[batch.position_TU].tolist() == before.tolist()
    assert isinstance(batch.signal, HiddenSignal)
    hidden = [one.signal.hidden_ND for one in (long, short)]  # type: ignore[union-attr]
    assert np.array_equal(batch.signal.hidden_ND, np.concatenate(hidden))


def test_a_top_k_signal_keeps_ids_and_log_probabilities_together() -> None:
    rollouts = [
        dataclasses.replace(
            scored(name, length=length),
            signal=TopkSignal(
                ids_NM=np.full((length, 2), fill, np.int32),
                logq_NM=np.full((length, 2), -fill, np.float32),
            ),
        )
        for name, length, fill in (("a", 3, 8), ("b", 5, 9))
    ]
    (batch,) = packed(rollouts)
    assert isinstance(batch.signal, TopkSignal)
    assert batch.signal.ids_NM[:, 0].tolist() == [9] * 5 + [8] * 3
    assert batch.signal.logq_NM[:, 1].tolist() == [-9] * 5 + [-8] * 3


def test_a_sampled_signal_is_that_of_the_sampled_tokens_alone() -> None:
    signal = SampledSignal(logq_N=np.array([-5, -6, -7, -8], np.float32))
    one = dataclasses.replace(scored("a", length=4), signal=signal)
    (batch,) = packed([one])
    assert isinstance(batch.signal, SampledSignal)
    assert batch.signal.logq_N.tolist() == [-5, -6, -7, -8]


def test_the_samplers_log_probabilities_come_along_where_the_student_sampled() -> None:
    logp = {"a": [-1.0, -2.0, -3.0], "b": [-4.0, -5.0]}
    rollouts = [
        scored(name, length=len(values), logp_O=np.array(values, np.float32))
        for name, values in logp.items()
    ]
    (batch,) = packed(rollouts)
    assert batch.logp_T.tolist() == [-1, -2, -3, -4, -5]
    given = [scored(name, logp_O=np.zeros(0, np.float32)) for name in logp]
    (batch,) = packed(given)
    assert batch.logp_T.tolist() == [np.inf] * 10


def test_signals_of_two_kinds_are_refused() -> None:
    other = dataclasses.replace(
        scored("b"), signal=SampledSignal(logq_N=np.zeros(5, np.float32))
    )
    with pytest.raises(
        ValueError, match="2 kinds in one micro-batch: HiddenSignal, SampledSignal"
    ):
        packed([scored("a"), other])


def test_only_divergent_windows_become_targets_at_their_own_positions() -> None:
    one, other = scored("a", length=9), scored("b", length=6)
    found = [
        probes("a", positions=(2, 5), distances=(0.9, 0.1), num_student=(4, 4)),
        probes("b", positions=(3,), distances=(0.8,), num_student=(3,)),
    ]
    (batch,) = packed([one, other], found)
    assert batch.window_Q.tolist() == [2, 3, 4, 5, 9 + 3, 9 + 4, 9 + 5]
    assert batch.target_ids_QK.tolist() == [[30, 31, 32, 33]] * 7
    assert np.allclose(batch.target_weights_QK.sum(-1), 1.0)
    assert segments(batch) == [(3 + 8, 0, 0), (3 + 5, 1, 0)]
    assert len(batch.position_TU) == 15


def test_overlapping_windows_both_count() -> None:
    found = [probes("a", positions=(1, 2), distances=(0.9, 0.9), num_student=(4, 4))]
    (batch,) = packed([scored("a", length=9)], found)
    assert Counter(batch.window_Q.tolist()) == {1: 1, 2: 2, 3: 2, 4: 2, 5: 1}


def test_a_down_weighted_token_keeps_its_place_and_its_windows_are_not_learned() -> (
    None
):
    """Losses 1 but for position 2 of b, the false alarm, and 3 of b, the real
    divergence.
    """
    loss_N = np.array([1, 1, 4, 4, 1, 1], np.float32)
    rollouts = [
        scored("a", length=9),
        dataclasses.replace(scored("b", length=6), token_loss_N=loss_N),
    ]
    found = [
        probes("a", positions=(), distances=(), num_student=()),
        probes("b", positions=(2, 3), distances=(0.1, 0.9), num_student=(4, 3)),
    ]
    (batch,) = packed(rollouts, found, downweight="low_ot", lambda_traj=0.0)
    assert batch.rollout_ids == ("a", "b")
    assert batch.weight_T.tolist() == [1] * 9 + [1, 1, 0.25, 1, 1, 1]
    assert batch.window_Q.shape == (0,)
    (both,) = packed(rollouts, found, downweight="low_ot", lambda_traj=0.3)
    assert both.weight_T.tolist() == batch.weight_T.tolist()
    assert both.window_Q.tolist() == [9 + 3, 9 + 4, 9 + 5]


def test_a_resampled_window_hangs_off_the_trunk_just_before_its_candidate() -> None:
    """Prompt of 3, response of 5; a window S of 3 tokens at t = 1 sees prompt and
    y_0.
    """
    one = scored("a", prompt_length=3, length=5)
    found = probes(
        "a", positions=(1,), num_student=(3,), distances=(0.9,), resampled=True
    )
    found.student_ids_WK[0, :3] = [40, 41, 42]
    (batch,) = packed([one], [found])
    trunk = [*one.rollout.prompt_ids_P, *one.rollout.response_ids_N[:-1]]
    assert batch.input_ids_L.tolist() == [*trunk, 40, 41]
    assert segments(batch) == [(7, 0, 0), (2, 0, 4)]
    assert batch.position_TU.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert batch.window_Q.tolist() == [
        1,
        5,
        6,
    ]  # y_1's own state, then those of S_0 and S_1


def test_a_fresh_window_of_one_token_needs_no_token_of_its_own() -> None:
    found = probes(
        "a", positions=(2,), num_student=(1,), distances=(0.9,), resampled=True
    )
    (batch,) = packed([scored("a")], [found])
    assert segments(batch) == [(7, 0, 0)]
    assert batch.window_Q.tolist() == [2]


def contexts(batch: TrainBatch) -> list[list[int]]:
    """What each position of T + U is predicted from: the tokens it sees, itself
    last.
    """
    start_S = np.cumsum(batch.length_S) - batch.length_S
    assert start_S[-1] + batch.length_S[-1] == len(batch.input_ids_L)
    found = []
    for index in batch.position_TU:
        s = np.searchsorted(start_S, index, side="right") - 1
        first = start_S[batch.trunk_S[s]]
        before = batch.input_ids_L[first : first + batch.branch_S[s]]
        found.append(
            [*before.tolist(), *batch.input_ids_L[start_S[s] : index + 1].tolist()]
        )
    return found


windows = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 4), st.sampled_from([0.1, 0.9])),
    max_size=3,
)
chunk = st.lists(
    st.tuples(st.integers(5, 8), st.integers(1, 4), windows), min_size=1, max_size=5
)


def make_chunk(
    drawn: Sequence[tuple[int, int, list[tuple[int, int, float]]]], *, resampled: bool
) -> tuple[list[ScoredRollout], list[ProbeSet]]:
    """Rollouts and probes in which no token id occurs twice, so that a context names
    its place.
    """
    ids = iter(range(10_000))
    rollouts, found = [], []
    for i, (length, num_prompt, parts) in enumerate(drawn):
        response_N = np.array([next(ids) for _ in range(length)], np.int32)
        prompt_P = np.array([next(ids) for _ in range(num_prompt)], np.int32)
        rollouts.append(
            scored(
                f"r{i}", length=length, response_ids_N=response_N, prompt_ids_P=prompt_P
            )
        )
        sizes = [n if resampled else min(n, length - t) for t, n, _ in parts]
        one = probes(
            f"r{i}",
            positions=tuple(t for t, _, _ in parts),
            distances=tuple(distance for _, _, distance in parts),
            num_student=tuple(sizes),
            resampled=resampled,
        )
        for w, (size, (t, _, _)) in enumerate(zip(sizes, parts, strict=True)):
            one.student_ids_WK[w, :size] = (
                [next(ids) for _ in range(size)]
                if resampled
                else response_N[t : t + size]
            )
        one.teacher_ids_WK[:] = np.array([next(ids) for _ in parts], np.int32)[:, None]
        found.append(one)
    return rollouts, found


@settings(max_examples=60, deadline=None)
@given(
    drawn=chunk,
    resampled=st.booleans(),
    budget=st.integers(1, 80),
)
def test_every_token_and_every_window_position_is_predicted_from_what_came_before_it(
    drawn: list[tuple[int, int, list[tuple[int, int, float]]]],
    resampled: bool,
    budget: int,
) -> None:
    """The pairs (context, target) of all batches are those of separate sequences, each
    once.
    """
    rollouts, found = make_chunk(drawn, resampled=resampled)
    tokens, targets = [], []
    for one, probe in zip(rollouts, found, strict=True):
        prompt_P, response_N = (
            one.rollout.prompt_ids_P.tolist(),
            one.rollout.response_ids_N.tolist(),
        )
        tokens += [
            (*prompt_P, *response_N[:t], response_N[t]) for t in range(len(response_N))
        ]
        for w in np.flatnonzero(probe.d_ot_W > 0.5):
            window = probe.student_ids_WK[w, : probe.num_student_W[w]].tolist()
            start = prompt_P + response_N[: probe.positions_W[w]]
            teacher = int(probe.teacher_ids_WK[w, 0])
            targets += [(teacher, *start, *window[:i]) for i in range(len(window))]
    seen_tokens, seen_targets = [], []
    for batch in packed(rollouts, found, token_budget=budget):
        assert batch.input_ids_L.size <= budget or len(batch.rollout_ids) == 1
        context = contexts(batch)
        next_ids = batch.response_ids_T.tolist()
        seen_tokens += [(*context[t], y) for t, y in enumerate(next_ids)]
        seen_targets += [
            (int(ids_K[0]), *context[q])
            for q, ids_K in zip(batch.window_Q, batch.target_ids_QK, strict=True)
        ]
    assert Counter(seen_tokens) == Counter(tokens)
    assert Counter(seen_targets) == Counter(targets)


@settings(max_examples=30, deadline=None)
@given(drawn=chunk, order=st.randoms(use_true_random=False))
def test_batches_do_not_depend_on_the_order_of_what_comes_in(
    drawn: list[tuple[int, int, list[tuple[int, int, float]]]],
    order: random.Random,
) -> None:
    rollouts, found = make_chunk(drawn, resampled=True)
    first = packed(rollouts, found, token_budget=40)
    order.shuffle(rollouts)
    order.shuffle(found)
    again = packed(rollouts, found, token_budget=40)
    for one, other in zip(first, again, strict=True):
        assert one.rollout_ids == other.rollout_ids
        assert np.array_equal(one.input_ids_L, other.input_ids_L)
        assert np.array_equal(one.window_Q, other.window_Q)
        assert np.array_equal(one.target_weights_QK, other.target_weights_QK)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    budget=st.integers(1, 80),
)
def test_every_rollout_is_packed_once_and_no_batch_is_empty(
    lengths: list[int], budget: int
) -> None:
    rollouts = [scored(f"r{i}", length=length) for i, length in enumerate(lengths)]
    batches = packed(rollouts, token_budget=budget)
    names = Counter(chain.from_iterable(batch.rollout_ids for batch in batches))
    assert names == {one.rollout.rollout_id: 1 for one in rollouts}
    assert all(batch.rollout_ids for batch in batches)
    assert sum(len(batch.position_TU) for batch in batches) == sum(lengths)
    for batch in batches:
        assert batch.input_ids_L.size <= budget or len(batch.rollout_ids) == 1


def test_a_rank_with_less_has_as_many_micro_batches_as_the_fullest() -> None:
    rollouts = [scored(f"r{i}", length=10) for i in range(4)]
    assert len(packed(rollouts, token_budget=1000)) == 1
    three = packed(rollouts, token_budget=1000, at_least=3)
    assert [len(batch.rollout_ids) for batch in three] == [2, 1, 1]
    assert len(packed(rollouts, token_budget=1000, at_least=9)) == 4  # none is empty


def test_windows_count_for_the_token_budget() -> None:
    rollouts = [scored(name, prompt_length=3, length=5) for name in "ab"]
    found = [
        probes(name, positions=(1,), num_student=(4,), distances=(0.9,), resampled=True)
        for name in "ab"
    ]
    share = packed(rollouts, found, token_budget=2 * (7 + 3))
    assert [batch.rollout_ids for batch in share] == [("a", "b")]
    share = packed(rollouts, found, token_budget=2 * (7 + 3) - 1)
    assert [batch.rollout_ids for batch in share] == [("a",), ("b",)]


def test_a_share_without_rollouts_has_no_micro_batch() -> None:
    assert packed([], []) == []
    assert packed([], None) == []


def test_rollouts_far_beyond_the_budget_have_a_batch_each_and_no_more() -> None:
    rollouts = [scored(name, length=90) for name in "ab"]
    assert [b.rollout_ids for b in packed(rollouts, token_budget=10)] == [
        ("a",),
        ("b",),
    ]


def test_probes_of_another_rollout_are_refused() -> None:
    with pytest.raises(ValueError, match="only one of them"):
        packed([scored("a")], [probes("b")])


def test_probes_of_another_policy_are_refused() -> None:
    stale = dataclasses.replace(probes("a"), policy_version=3)
    with pytest.raises(ValueError, match="policy_version 0, its probes of 3"):
        packed([scored("a")], [stale])
