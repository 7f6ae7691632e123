"""Every estimate against scipy, brute force, or the coverage it promises."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from topd_ray import statistics

FLOATS = st.floats(-100, 100, allow_subnormal=False)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=3, max_size=40))
def test_correlations_agree_with_scipy(pairs: list[tuple[float, float]]) -> None:
    x, y = (np.round(column, 2) for column in zip(*pairs, strict=True))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(statistics.pearson(x, y))
        assert math.isnan(statistics.spearman(x, y))
        return
    assert statistics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-9)
    assert statistics.spearman(x, y) == pytest.approx(
        stats.spearmanr(x, y)[0], abs=1e-9
    )


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=30))
def test_the_auroc_counts_pairs_and_half_of_the_ties(
    rows: list[tuple[int, bool]],
) -> None:
    pairs = [
        (mine > other) + 0.5 * (mine == other)
        for mine, is_positive in rows
        for other, is_other in rows
        if is_positive and not is_other
    ]
    scores = [score for score, _ in rows]
    found = statistics.auroc(scores, [flag for _, flag in rows])
    assert found == pytest.approx(np.mean(pairs) if pairs else math.nan, nan_ok=True)


def test_the_bootstrap_agrees_with_scipys_percentile_interval() -> None:
    values = np.random.default_rng(0).exponential(size=60)
    mine = statistics.bootstrap(statistics.median, values, seed=1, resamples=4000)
    theirs = stats.bootstrap(
        (values,), np.median, method="percentile", n_resamples=4000, random_state=2
    ).confidence_interval
    spread = theirs.high - theirs.low
    assert mine.value == np.median(values)
    assert mine.count == 60
    # Two independent sets of 4000 draws: their quantiles differ by a few percent of the
    # spread.
    assert mine.low == pytest.approx(theirs.low, abs=0.1 * spread)
    assert mine.high == pytest.approx(theirs.high, abs=0.1 * spread)


def test_the_bootstrap_of_the_same_seed_is_the_same_and_of_another_is_not() -> None:
    values = np.random.default_rng(0).normal(size=30)
    one, same, other = (
        statistics.bootstrap(statistics.mean, values, seed=seed, resamples=200)
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_the_bootstrap_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        got = statistics.bootstrap(
            statistics.mean, rng.normal(3.0, 1.0, 40), seed=trial, resamples=200
        )
        hits += got.low <= 3.0 <= got.high
    # 95 % of 200 is 190; a percentile interval of 40 values is a little short, 3 sigma
    # is 9.
    assert 178 <= hits <= 199


def test_clusters_widen_the_interval_where_their_rows_say_the_same() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(size=20)
    names = np.repeat(np.arange(20), 10)
    values = level[names] + 0.01 * rng.normal(size=200)
    alone = statistics.bootstrap(statistics.mean, values, seed=0, resamples=500)
    whole = statistics.bootstrap(
        statistics.mean, values, seed=0, resamples=500, clusters=names.tolist()
    )
    once = statistics.bootstrap(statistics.mean, level, seed=0, resamples=500)
    ratio = (whole.high - whole.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.25)
    assert whole.high - whole.low == pytest.approx(once.high - once.low, rel=0.15)


def test_a_row_of_every_column_is_drawn_together() -> None:
    values = np.arange(50.0)
    got = statistics.bootstrap(
        statistics.pearson, values, 2 * values, seed=0, resamples=50
    )
    assert got.low == pytest.approx(1.0)
    assert got.high == pytest.approx(1.0)


def test_the_t_interval_agrees_with_scipy_and_needs_two_values() -> None:
    values = [50.1, 52.3, 49.8, 51.0, 53.2]
    got = statistics.t_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (got.value, got.low, got.high) == pytest.approx((np.mean(values), low, high))
    lonely = statistics.t_interval([50.0])
    assert lonely.value == 50.0
    assert math.isnan(lonely.low)
    assert math.isnan(statistics.t_interval([]).value)


def test_the_share_has_wilsons_interval() -> None:
    got = statistics.share([True] * 3 + [False] * 7)
    z, n, p = stats.norm.ppf(0.975), 10, 0.3
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (got.value, got.low, got.high) == pytest.approx(
        (0.3, centre - half, centre + half)
    )
    assert math.isnan(statistics.share([]).value)


def test_a_value_on_the_line_lies_below_it() -> None:
    assert statistics.share_below([1.0, 2.0, 3.0, 4.0], 2.0) == 0.5
    assert math.isnan(statistics.share_below([], 2.0))


def test_the_paired_tests_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=30)
    b = a + rng.normal(0.4, 1.0, size=30)
    got = statistics.paired_difference(a, b, seed=0)
    assert got.mean.value == pytest.approx(float(np.mean(b - a)))
    assert got.p_t == pytest.approx(stats.ttest_rel(b, a).pvalue)
    assert got.p_wilcoxon == pytest.approx(stats.wilcoxon(b - a).pvalue)
    # 20,000 flips: the standard error of a p near 0.05 is 0.0015
    assert got.p_sign_flip == pytest.approx(got.p_t, abs=0.02)


@given(st.lists(FLOATS, min_size=1, max_size=7))
@settings(max_examples=40, deadline=None)  # a busy machine is no failure
def test_few_sign_flips_are_all_of_them(difference: list[float]) -> None:
    rounded = [round(value, 1) for value in difference]
    sums = [
        sum(sign * value for sign, value in zip(signs, rounded, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(rounded))
    ]
    extreme = [abs(total) >= abs(sum(rounded)) - 1e-9 for total in sums]
    got = statistics.paired_difference(np.zeros(len(rounded)), rounded, seed=0)
    assert got.p_sign_flip == pytest.approx(np.mean(extreme))


def test_sign_flips_find_nothing_as_often_as_they_should() -> None:
    rng = np.random.default_rng(1)
    tries = [
        statistics.paired_difference(
            np.zeros(10), rng.normal(size=10), seed=0
        ).p_sign_flip
        for _ in range(300)
    ]
    found = sum(p <= 0.05 for p in tries)
    assert 4 <= found <= 28  # 15 expected, 3.5 standard deviations either side


def test_pairs_that_do_not_differ_have_no_p() -> None:
    same = statistics.paired_difference([1.0, 2.0], [1.0, 2.0], seed=0)
    assert same.mean.value == 0.0
    assert math.isnan(same.p_t)
    assert math.isnan(same.p_wilcoxon)
    assert same.p_sign_flip == 1.0
    with pytest.raises(ValueError, match="not pairs"):
        statistics.paired_difference([1.0, 2.0], [1.0], seed=0)


def test_bins_hold_equally_many_and_their_means_add_up() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=103), rng.normal(size=103)
    bins = statistics.binned_means(x, y, bins=10)
    counts = [part.y.count for part in bins]
    assert sum(counts) == 103
    assert max(counts) - min(counts) == 1
    assert [part.x for part in bins] == sorted(part.x for part in bins)
    total = sum(part.y.value * part.y.count for part in bins)
    assert total == pytest.approx(y.sum())
    lowest = np.sort(x)[: counts[0]]
    assert bins[0].x == pytest.approx(lowest.mean())
    assert len(statistics.binned_means([1.0, 2.0], [1.0, 2.0], bins=10)) == 2


def test_holm_multiplies_the_smallest_p_by_all_and_never_lets_a_larger_one_pass() -> (
    None
):
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    assert statistics.holm([0.7, 0.9]) == [1.0, 1.0]
    # a test that could not be made counts, and has no p
    assert statistics.holm([math.nan, 0.01]) == pytest.approx(
        [math.nan, 0.02], nan_ok=True
    )


def test_positive_pairs_are_counted_without_ties() -> None:
    paired = statistics.paired_difference([1.0, 1.0, 1.0], [2.0, 1.0, 0.5], seed=0)
    assert paired.num_positive == 1
