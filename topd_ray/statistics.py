"""Numbers with their uncertainty: intervals, bootstrap, correlations, paired tests.

Every interval is two-sided at `LEVEL`. A number that does not exist (the correlation of
a constant, the spread of one value) is nan, never an error: a study with few
observations still reports.

Axes: N observations.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
# The standard error of a drawn p near 0.05 is then 0.0015.
_SIGN_FLIPS = 20_000
_EXACT_SIGN_FLIPS = 14  # up to 2 ** 14 patterns are all computed

Values = NDArray[np.float64]
Statistic = Callable[..., float]
"""Computes one number from columns of equal length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval.

    Example:
        >>> str(Estimate(value=0.61, low=0.57, high=0.65, count=40))
        '0.610 [0.570, 0.650]'
    """

    value: float
    low: float
    high: float
    count: int
    """Observations that the number rests on."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Mean of b - a over pairs, and three two-sided tests of whether it is 0."""

    mean: Estimate
    p_t: float
    """p of Student's t test."""
    p_wilcoxon: float
    """p of Wilcoxon's test of signed ranks; pairs without a difference are left out."""
    p_sign_flip: float
    """p of permuted signs: exact for few pairs, from seeded draws for many."""
    num_positive: int
    """Pairs in which b is larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """One slice of the observations, sorted by x."""

    x: float
    """Mean of x in the slice."""
    y: Estimate
    """Mean of y in the slice with its t-interval."""


def bootstrap(
    statistic: Statistic,
    *columns: ArrayLike,
    seed: int,
    resamples: int = 2000,
    clusters: Sequence[Hashable] | None = None,
) -> Estimate:
    """Return a statistic of the columns with its percentile interval.

    Args:
        statistic: computes the number from columns of equal length.
        columns: one array of N observations for each argument of `statistic`.
        seed: seed of the draws; the same seed gives the same interval.
        resamples: draws of N rows with replacement.
        clusters: cluster of each of the N rows; whole clusters are drawn instead of
            rows, for rows of a cluster that depend on each other.

    Returns:
        The statistic of the columns. Resamples on which it is nan are left out of the
        interval; without any row all numbers are nan.

    Raises:
        ValueError: `clusters` has another length than the columns.
    """
    data = [np.asarray(column) for column in columns]
    count = len(data[0])
    members = None if clusters is None else _members(clusters, count)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples if count else 0):
        rows = _drawn_rows(rng, count, members)
        drawn.append(statistic(*(column[rows] for column in data)))
    finite = np.array([value for value in drawn if math.isfinite(value)])
    tail = (1 - LEVEL) / 2
    low, high = (
        np.quantile(finite, [tail, 1 - tail]) if len(finite) else (math.nan, math.nan)
    )
    value = statistic(*data) if count else math.nan
    return Estimate(value=float(value), low=float(low), high=float(high), count=count)


def mean(values: ArrayLike) -> float:
    """Return the mean.

    Args:
        values: N values.

    Returns:
        The mean; nan where there are no values.
    """
    array = np.asarray(values, np.float64)
    return float(array.mean()) if len(array) else math.nan


def median(values: ArrayLike) -> float:
    """Return the median.

    Args:
        values: N values.

    Returns:
        The median; nan where there are no values.
    """
    array = np.asarray(values, np.float64)
    return float(np.median(array)) if len(array) else math.nan


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Return the linear correlation of two columns.

    Args:
        x: N values.
        y: N values; the n-th belongs to the n-th of `x`.

    Returns:
        Pearson's r in -1..1; nan where either column is constant.
    """
    a = _centred(x)
    b = _centred(y)
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else math.nan


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Return the correlation of the ranks of two columns.

    Args:
        x: N values.
        y: N values; the n-th belongs to the n-th of `x`.

    Returns:
        Spearman's rho in -1..1, ties sharing their mean rank; nan where either
        column is constant.
    """
    return pearson(stats.rankdata(x), stats.rankdata(y))


def auroc(scores: ArrayLike, is_positive: ArrayLike) -> float:
    """Return the area under the receiver operating characteristic.

    It is the chance that a positive has a higher score than a negative; a tie counts
    half.

    Args:
        scores: N values.
        is_positive: N booleans; the n-th belongs to the n-th of `scores`.

    Returns:
        An area in 0..1; nan where there are no positives or no negatives.
    """
    positive_N = np.asarray(is_positive, bool)
    num_positive = int(positive_N.sum())
    num_pairs = num_positive * (len(positive_N) - num_positive)
    if not num_pairs:
        return math.nan
    # Mann and Whitney's U, from the ranks.
    rank_sum = float(stats.rankdata(scores)[positive_N].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / num_pairs


def share(hits: ArrayLike) -> Estimate:
    """Return the share of true values with Wilson's interval.

    Args:
        hits: N booleans, of independent rows.

    Returns:
        Share and interval at `LEVEL`; nan where there are no rows.
    """
    flags = np.asarray(hits, bool)
    if not len(flags):
        return Estimate(value=math.nan, low=math.nan, high=math.nan, count=0)
    num_hits = int(flags.sum())
    # Wilson, because the normal interval has no width where all or none are true.
    interval = stats.binomtest(num_hits, len(flags)).proportion_ci(
        LEVEL, method="wilson"
    )
    return Estimate(
        value=num_hits / len(flags),
        low=float(interval.low),
        high=float(interval.high),
        count=len(flags),
    )


def share_below(values: ArrayLike, threshold: float) -> float:
    """Return the share of values at or below a threshold.

    Args:
        values: N values.
        threshold: the threshold, in the unit of the values.

    Returns:
        A share in 0..1; nan where there are no values.
    """
    return mean(np.asarray(values, np.float64) <= threshold)


def upper_quartile(values: ArrayLike) -> float:
    """Return the 0.75 quantile.

    Args:
        values: N values.

    Returns:
        The quantile, interpolated linearly; nan where there are no values.
    """
    array = np.asarray(values, np.float64)
    return float(np.quantile(array, 0.75)) if len(array) else math.nan


def t_interval(values: ArrayLike) -> Estimate:
    """Return the mean of independent values with Student's interval.

    Args:
        values: N values.

    Returns:
        Mean and interval at `LEVEL`; the interval is nan for fewer than two values.
    """
    array = np.asarray(values, np.float64)
    centre = mean(array)
    half = math.nan
    if len(array) > 1:
        error = float(array.std(ddof=1)) / math.sqrt(len(array))
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(array) - 1)) * error
    return Estimate(
        value=centre, low=centre - half, high=centre + half, count=len(array)
    )


def paired_difference(a: ArrayLike, b: ArrayLike, *, seed: int) -> PairedDifference:
    """Return the mean of b - a over pairs, with three tests of whether it is 0.

    Args:
        a: N values.
        b: N values; the n-th belongs to the n-th of `a`.
        seed: seed of the drawn sign flips, which many pairs need.

    Returns:
        The mean difference with its interval, and the p-values of the three tests.

    Raises:
        ValueError: `a` and `b` are not one-dimensional and equally long.
    """
    first = np.asarray(a, np.float64)
    second = np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"shapes {first.shape} and {second.shape} are not pairs")
    difference = second - first
    return PairedDifference(
        mean=t_interval(difference),
        p_t=_t_p(difference),
        p_wilcoxon=_wilcoxon_p(difference),
        p_sign_flip=_sign_flip_p(difference, seed),
        num_positive=int((difference > 0).sum()),
    )


def holm(p_values: ArrayLike) -> list[float]:
    """Return p-values corrected for their number by Holm's method.

    The chance that any true null hypothesis has a corrected p below a level is at most
    that level, however the tests depend on each other (Holm 1979).

    Args:
        p_values: N p-values; a nan is a test that could not be made.

    Returns:
        N corrected values in 0..1, in the same order; a nan stays nan and counts as one
        of the N.
    """
    array = np.asarray(p_values, np.float64)
    corrected = np.full(len(array), math.nan)
    largest = 0.0
    # Sorted last: nan, which no other value may be below.
    for rank, index in enumerate(np.argsort(array, kind="stable")):
        if math.isnan(array[index]):
            break
        largest = max(largest, min(1.0, (len(array) - rank) * float(array[index])))
        corrected[index] = largest
    return [float(value) for value in corrected]


def binned_means(x: ArrayLike, y: ArrayLike, *, bins: int) -> list[Bin]:
    """Return the means of y in slices of x.

    Args:
        x: N values.
        y: N values; the n-th belongs to the n-th of `x`.
        bins: number of slices.

    Returns:
        A `Bin` a slice, in ascending order of x. Slices hold equally many observations,
        give or take one; fewer than `bins` observations give fewer slices.
    """
    x_N = np.asarray(x, np.float64)
    y_N = np.asarray(y, np.float64)
    # Stable, so that ties fall into the same slices on every machine.
    parts = np.array_split(np.argsort(x_N, kind="stable"), bins)
    return [
        Bin(x=mean(x_N[rows]), y=t_interval(y_N[rows])) for rows in parts if len(rows)
    ]


def _drawn_rows(
    rng: np.random.Generator, count: int, members: list[NDArray[np.intp]] | None
) -> NDArray[np.intp]:
    if members is None:
        return rng.integers(count, size=count)
    picked = rng.integers(len(members), size=len(members))
    return np.concatenate([members[index] for index in picked])


def _members(clusters: Sequence[Hashable], count: int) -> list[NDArray[np.intp]]:
    if len(clusters) != count:
        raise ValueError(f"{len(clusters)} cluster names for {count} rows")
    rows: dict[Hashable, list[int]] = {}
    for row, name in enumerate(clusters):
        rows.setdefault(name, []).append(row)
    return [np.array(group, np.intp) for group in rows.values()]


def _centred(values: ArrayLike) -> Values:
    array = np.asarray(values, np.float64)
    # The mean of a constant may be rounded: its deviations are noise, not spread.
    if not len(array) or array.min() == array.max():
        return np.zeros_like(array)
    centred: Values = array - array.mean()
    return centred


def _t_p(difference: Values) -> float:
    """Return p of the t test; without any spread 0, or nan where all is 0."""
    if len(difference) < 2:
        return math.nan
    if difference.min() == difference.max():
        return math.nan if difference[0] == 0 else 0.0
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return float(
        2 * stats.t.sf(abs(float(difference.mean())) / error, len(difference) - 1)
    )


def _wilcoxon_p(difference: Values) -> float:
    moved = difference[difference != 0]
    return float(stats.wilcoxon(moved).pvalue) if len(moved) else math.nan


def _sign_flip_p(difference: Values, seed: int) -> float:
    """Return how often random signs give a mean at least as far from 0."""
    count = len(difference)
    if not count:
        return math.nan
    exact = count <= _EXACT_SIGN_FLIPS
    if exact:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        sums = (2 * patterns - 1) @ difference
    else:
        rng = np.random.default_rng(seed)
        # One draw at a time: a matrix of all signs would hold 20,000 numbers a pair.
        sums = np.array(
            [
                rng.choice((-1.0, 1.0), size=count) @ difference
                for _ in range(_SIGN_FLIPS)
            ]
        )
    # Sums of the same numbers in another order differ in their last digits.
    slack = 1e-12 * float(np.abs(difference).sum())
    extreme = int((np.abs(sums) >= abs(float(difference.sum())) - slack).sum())
    # The observed signs are one more draw, so a p of drawn flips is never 0.
    return extreme / len(sums) if exact else (extreme + 1) / (len(sums) + 1)


__all__ = [
    "Bin",
    "Estimate",
    "PairedDifference",
    "auroc",
    "binned_means",
    "bootstrap",
    "holm",
    "mean",
    "median",
    "paired_difference",
    "pearson",
    "share",
    "share_below",
    "spearman",
    "t_interval",
    "upper_quartile",
]
