"""Weights of tokens: hand-computed cases, and a slow oracle in plain Python."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import make
from topd_ray.config import ObjectiveConfig
from topd_ray.messages import HIGH, LOW, PAD, ProbeSet, ScoredRollout
from topd_ray.windows import token_weights
from topd_ray.windows.token_weights import student_entropy


def scored(name: str, losses: Sequence[float], **fields: Any) -> ScoredRollout:
    template = make.scored(name, length=len(losses), **fields)
    return replace(template, token_loss_N=np.array(losses, np.float32))


def probed(
    name: str, distances: dict[int, float], groups: Sequence[int] | None = None
) -> ProbeSet:
    """`distances` is D_OT by position."""
    count = len(distances)
    return make.probes(
        name,
        positions=tuple(distances),
        distances=tuple(distances.values()),
        num_student=(4,) * count,
        groups_W=np.array(groups or [HIGH] * count, np.int32),
    )


def weights(
    rollouts: Sequence[ScoredRollout],
    probes: Sequence[ProbeSet] | None = None,
    *,
    run_seed: int = 0,
    threshold: float = 0.5,
    **objective: Any,
) -> dict[str, list[float]]:
    weights_by_id = token_weights(
        rollouts,
        probes,
        objective=ObjectiveConfig.model_validate(objective),
        threshold=threshold,
        run_seed=run_seed,
    )
    assert all(weight_N.dtype == np.float32 for weight_N in weights_by_id.values())
    return {name: weight_N.tolist() for name, weight_N in weights_by_id.items()}


def test_every_weight_is_1_by_default() -> None:
    probes = [probed("a", {1: 0.1})]
    assert weights([scored("a", [1, 9, 1])], probes, lambda_traj=0.3) == {
        "a": [1, 1, 1]
    }


def test_a_false_alarm_counts_as_much_as_the_median_token() -> None:
    """Losses 8 and 4 over a median of 1; position 4 diverges and keeps its weight."""
    rollouts = [scored("a", [0.5, 8.0, 1.0, 4.0, 6.0, 0.5, 0.25])]
    probes = [probed("a", {1: 0.5, 3: 0.2, 4: 0.6})]
    (weights_N,) = weights(rollouts, probes, downweight="low_ot").values()
    assert weights_N == [1, 1 / 8, 1, 1 / 4, 1, 1, 1]


def test_a_candidate_below_the_median_keeps_its_weight() -> None:
    rollouts = [scored("a", [1.0, 2.0, 3.0])]
    assert weights(rollouts, [probed("a", {0: 0.1})], downweight="low_ot") == {
        "a": [1, 1, 1]
    }


def test_controls_and_unsolved_windows_are_never_down_weighted() -> None:
    rollouts = [scored("a", [0.0, 8.0, 9.0, 1.0, 1.0])]
    probes = [probed("a", {1: 0.1, 2: math.nan}, [LOW, HIGH])]
    assert weights(rollouts, probes, downweight="low_ot") == {"a": [1] * 5}


@pytest.mark.parametrize(
    ("losses", "weight"),
    [
        ([0.0, 0.0, 5.0], 0.0),  # the median is 0: nothing is left of the term
        ([-1.0, -1.0, 5.0], 0.0),
        ([-1.0, -1.0, -0.5], 0.0),
        ([-1.0, -1.0, 0.0], 0.0),
        ([0.0, 0.0, 0.0], 1.0),
        ([2.0, math.nan, 8.0], 0.625),  # median of 2 and 8
        ([2.0, 3.0, math.nan], 1.0),
        ([2.0, 3.0, math.inf], 0.0),
        ([math.nan, math.nan, math.nan], 1.0),
    ],
)
def test_zero_negative_and_non_finite_losses_have_a_weight_from_0_to_1(
    losses: list[float], weight: float
) -> None:
    rollouts = [scored("a", losses)]
    assert (
        weights(rollouts, [probed("a", {2: 0.1})], downweight="low_ot")["a"][2]
        == weight
    )


def test_down_weighting_without_probes_is_refused() -> None:
    with pytest.raises(ValueError, match="downweight=low_ot without probes"):
        weights([scored("a", [1.0])], None, downweight="low_ot")


def test_the_matched_group_comes_from_above_the_threshold_of_the_same_rollout() -> None:
    rollouts = [scored(name, [1, 8, 8, 8, 8, 1, 1, 1, 1]) for name in "ab"]
    probes = [
        probed("a", {1: 0.9, 2: 0.1, 3: 0.9, 4: 0.9}),
        probed("b", {1: 0.9, 2: 0.9, 3: 0.9, 4: 0.9}),
    ]
    weights_by_id = weights(rollouts, probes, downweight="matched_high_ot")
    capped = [t for t, weight in enumerate(weights_by_id["a"]) if weight != 1]
    assert len(capped) == 1
    assert capped[0] in (1, 3, 4)
    assert weights_by_id["a"][capped[0]] == 1 / 8
    assert weights_by_id["b"] == [1] * 9


def test_what_a_rollout_cannot_match_is_drawn_from_the_others() -> None:
    rollouts = [scored(name, [1, 8, 8, 8, 8, 1, 1, 1, 1]) for name in "ab"]
    probes = [
        probed("a", {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.9}),
        probed("b", {1: 0.9, 2: 0.9, 3: 0.9, 4: 0.1}),
    ]
    weights_by_id = weights(rollouts, probes, downweight="matched_high_ot")
    assert weights_by_id["a"] == [1, 1, 1, 1, 1 / 8, 1, 1, 1, 1]
    assert [weight != 1 for weight in weights_by_id["b"]] == [
        t in (1, 2, 3) for t in range(9)
    ]


def test_another_seed_draws_others() -> None:
    rollouts = [scored("a", [1] * 10 + [8] * 9)]
    probes = [probed("a", {10: 0.1} | dict.fromkeys(range(11, 19), 0.9))]
    drawn = [
        weights(rollouts, probes, downweight="matched_high_ot", run_seed=seed)[
            "a"
        ].index(1 / 8)
        for seed in range(40)
    ]
    assert set(drawn) <= set(range(11, 19))
    assert len(set(drawn)) > 4


losses = st.lists(st.floats(0.0, 4.0, width=32), min_size=6, max_size=12)
windows = st.dictionaries(
    st.integers(0, 5), st.sampled_from([0.1, 0.5, 0.6, 0.9]), max_size=5
)
chunks = st.lists(st.tuples(losses, windows), min_size=1, max_size=5)


def capped_weight(losses: Sequence[float], t: int) -> float:
    ordered = sorted(np.float32(losses).tolist())
    middle = len(ordered) // 2
    median = (
        ordered[middle]
        if len(ordered) % 2
        else (ordered[middle - 1] + ordered[middle]) / 2
    )
    loss = float(np.float32(losses[t]))
    return 1.0 if loss <= median else median / loss


@settings(max_examples=40, deadline=None)
@given(chunk=chunks)
def test_low_ot_weights_are_the_oracles(
    chunk: list[tuple[list[float], dict[int, float]]],
) -> None:
    rollouts = [scored(f"r{i}", values) for i, (values, _) in enumerate(chunk)]
    probes = [probed(f"r{i}", distances) for i, (_, distances) in enumerate(chunk)]
    weights_by_id = weights(rollouts, probes, downweight="low_ot")
    for i, (values, distances) in enumerate(chunk):
        expected = [
            capped_weight(values, t) if distances.get(t, 9.0) <= 0.5 else 1.0
            for t in range(len(values))
        ]
        assert weights_by_id[f"r{i}"] == pytest.approx(expected, rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(chunk=chunks, order=st.randoms(use_true_random=False))
def test_as_many_are_matched_as_are_low_and_order_changes_nothing(
    chunk: list[tuple[list[float], dict[int, float]]], order: random.Random
) -> None:
    """Every candidate's loss is raised above the median, so that a cap shows."""
    rollouts, probes = [], []
    low = 0
    high = 0
    for i, (values, distances) in enumerate(chunk):
        raised = [10.0 if t in distances else loss for t, loss in enumerate(values)]
        rollouts.append(scored(f"r{i}", [*raised, *[0.0] * 12]))
        probes.append(probed(f"r{i}", distances))
        low += sum(distance <= 0.5 for distance in distances.values())
        high += sum(distance > 0.5 for distance in distances.values())
    weights_by_id = weights(rollouts, probes, downweight="matched_high_ot")
    capped = [
        (i, t)
        for i in range(len(chunk))
        for t, weight in enumerate(weights_by_id[f"r{i}"])
        if weight != 1
    ]
    assert len(capped) == min(low, high)
    assert all(chunk[i][1][t] > 0.5 for i, t in capped)
    for i, (_, distances) in enumerate(chunk):
        own_low = sum(distance <= 0.5 for distance in distances.values())
        own_high = len(distances) - own_low
        assert sum(where == i for where, _ in capped) >= min(own_low, own_high)
    order.shuffle(rollouts)
    order.shuffle(probes)
    assert weights(rollouts, probes, downweight="matched_high_ot") == weights_by_id


def test_the_entropy_has_a_bucket_for_the_tail_and_none_for_padding() -> None:
    p_NM = np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.0], [1.0, 0.0, 0.0]])
    with np.errstate(divide="ignore"):
        entropy_N = student_entropy(np.log(p_NM).astype(np.float32))
    expected = [1.5 * math.log(2), 1.5 * math.log(2), 0.0]
    assert entropy_N.tolist() == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(-4, 4), min_size=6, max_size=6), st.integers(1, 6))
def test_the_entropy_is_a_lower_bound_within_the_tails_entropy(
    logits: list[float], num_top: int
) -> None:
    p = sorted((math.exp(x) / sum(map(math.exp, logits)) for x in logits), reverse=True)
    whole = -sum(x * math.log(x) for x in p)
    tail = sum(p[num_top:])
    (entropy,) = student_entropy(np.log(np.array([p[:num_top]])).astype(np.float32))
    slack = tail * math.log(6 - num_top) if num_top < 6 else 0.0
    assert whole - slack - 1e-5 <= entropy <= whole + 1e-5


def test_the_selection_keeps_the_tokens_highest_in_entropy_times_loss() -> None:
    """Entropies 0, ln 2, ln 2, ln 2, 0; products rank 3, 1, then the rest."""
    even = [math.log(0.5), math.log(0.5)]
    sure = [0.0, -math.inf]
    scored_rollout = scored(
        "a",
        [9.0, 2.0, 1.0, 3.0, 8.0],
        top_ids_OM=np.tile(np.array([7, PAD], np.int32), (5, 1)),
        top_logp_OM=np.array([sure, even, even, even, sure], np.float32),
    )
    select = {"select": "entropy_divergence"}
    assert weights([scored_rollout], select_fraction=0.4, **select) == {
        "a": [0, 1, 0, 1, 0]
    }
    assert weights([scored_rollout], select_fraction=0.6, **select) == {
        "a": [0, 1, 1, 1, 0]
    }
    assert weights([scored_rollout], select_fraction=0.01, **select) == {
        "a": [0, 0, 0, 1, 0]
    }
    assert weights([scored_rollout], select_fraction=1.0, **select) == {"a": [1] * 5}


def test_a_selected_false_alarm_is_down_weighted_and_an_unselected_one_is_0() -> None:
    even = [math.log(0.5), math.log(0.5)]
    sure = [0.0, -math.inf]
    scored_rollout = scored(
        "a",
        [1.0, 4.0, 8.0, 1.0, 1.0],
        top_ids_OM=np.zeros((5, 2), np.int32),
        top_logp_OM=np.array([even, even, sure, even, even], np.float32),
    )
    weights_by_id = weights(
        [scored_rollout],
        [probed("a", {1: 0.1, 2: 0.1})],
        downweight="low_ot",
        select="entropy_divergence",
        select_fraction=0.4,
    )
    assert weights_by_id == {"a": [1, 0.25, 0, 0, 0]}
