"""Avg@k, Pass@k and their intervals, against enumeration and plain reasoning."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.evaluation.harness.pass_at_k import (
    estimate_pass_rate,
    pass_at_k,
    powers_of_two,
)


def counts(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("num_samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_k_subsets_that_hold_a_right_answer(
    num_samples: int,
) -> None:
    for num_correct in range(num_samples + 1):
        answers = [True] * num_correct + [False] * (num_samples - num_correct)
        for k in range(1, num_samples + 1):
            subsets = [any(chosen) for chosen in combinations(answers, k)]
            (found,) = pass_at_k(counts(num_correct), num_samples=num_samples, k=k)
            assert found == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


def test_a_case_done_by_hand() -> None:
    # 16 answers, 3 right: 1 - C(13, 4) / C(16, 4) = 1 - 715 / 1820
    (found,) = pass_at_k(counts(3), num_samples=16, k=4)
    assert found == pytest.approx(1105 / 1820, abs=1e-12)


def test_it_is_unbiased_where_the_plug_in_is_not() -> None:
    rate, num_samples, k = 0.2, 6, 4
    draws = np.random.default_rng(0).binomial(num_samples, rate, size=200_000)
    values = pass_at_k(draws, num_samples=num_samples, k=k)
    truth = 1 - (1 - rate) ** k
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - truth) < 5 * error
    plug_in = 1 - (1 - draws / num_samples) ** k
    assert abs(plug_in.mean() - truth) > 20 * error


@given(st.integers(1, 64), st.data())
def test_more_tries_and_more_right_answers_never_hurt(
    num_samples: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, num_samples))
    every_P = pass_at_k(np.arange(num_samples + 1), num_samples=num_samples, k=k)
    assert every_P[0] == 0
    assert every_P[-1] == 1
    assert (np.diff(every_P) >= 0).all()
    if k < num_samples:
        more_P = pass_at_k(np.arange(num_samples + 1), num_samples=num_samples, k=k + 1)
        assert (more_P >= every_P).all()
    assert pass_at_k(
        np.arange(num_samples + 1), num_samples=num_samples, k=1
    ) == pytest.approx(np.arange(num_samples + 1) / num_samples, abs=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_more_tries_than_samples_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k}"):
        pass_at_k(counts(1), num_samples=4, k=k)


def test_powers_of_two_end_at_the_largest_that_fits() -> None:
    assert [powers_of_two(k) for k in (1, 2, 6, 16)] == [
        [1],
        [1, 2],
        [1, 2, 4],
        [1, 2, 4, 8, 16],
    ]


def test_the_interval_of_a_share_is_the_normal_one_where_there_are_many_problems() -> (
    None
):
    values = (np.arange(2000) % 5 < 2).astype(float)
    found = estimate_pass_rate([values], seed=0)
    half = 1.959964 * (0.4 * 0.6 / 2000) ** 0.5
    assert found.value == pytest.approx(0.4)
    # The 2.5 % quantile of 10,000 draws is off by some 2.7 % of a standard error.
    assert found.low == pytest.approx(0.4 - half, abs=0.1 * half)
    assert found.high == pytest.approx(0.4 + half, abs=0.1 * half)


def test_benchmarks_count_the_same_and_only_problems_are_redrawn() -> None:
    small, large = np.array([1.0, 1.0]), np.zeros(500)
    found = estimate_pass_rate([small, large], seed=0)
    # Within each nothing varies, so neither does the average; pooled it would be 2 /
    # 502.
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)


def test_the_seed_fixes_the_interval() -> None:
    values = np.linspace(0, 1, 37) ** 2
    assert estimate_pass_rate([values], seed=1) == estimate_pass_rate([values], seed=1)
    assert estimate_pass_rate([values], seed=1) != estimate_pass_rate([values], seed=2)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 9))
def test_an_interval_holds_its_value_and_stays_within_the_values(
    values: list[float], seed: int
) -> None:
    found = estimate_pass_rate([np.array(values)], seed=seed)
    assert found.low <= found.value <= found.high
    assert min(values) - 1e-12 <= found.low
    assert found.high <= max(values) + 1e-12


@pytest.mark.parametrize(
    "groups", [[], [np.array([])], [np.array([1.0]), np.array([])]]
)
def test_nothing_has_no_mean(groups: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="no problems"):
        estimate_pass_rate(groups, seed=0)
