"""Numbers with their uncertainty. Pure: arrays in, estimates out.

Every interval is two-sided at `LEVEL`. A number that does not exist (the correlation of
a constant, the spread of one value) is nan, never an error: a study with a thin table
still reports.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
_SIGN_FLIPS = 20_000
_EXACT_SIGN_FLIPS = 14  # up to 2 ** 14 patterns are all looked at

Values = NDArray[np.float64]
Statistic = Callable[..., float]
"""Columns of equal length -> one number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number, its 95 % interval, and how many observations it rests on."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Mean of b - a over pairs, and three opinions on whether it is 0 (two-sided p)."""

    mean: Estimate
    p_t: float
    p_wilcoxon: float
    """Signed ranks; pairs without a difference are left out."""
    p_sign_flip: float
    """Permutation of signs: exact for few pairs, seeded draws for many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Equally many observations each, by x."""

    x: float
    """Mean of x."""
    y: Estimate
    """Mean of y with its t-interval."""


def bootstrap(
    statistic: Statistic,
    *columns: ArrayLike,
    seed: int,
    resamples: int = 2000,
    clusters: Sequence[Hashable] | None = None,
) -> Estimate:
    """`statistic` of the columns with its percentile interval.

    Rows are drawn with replacement, or whole clusters of rows where `clusters` names
    one a row. Resamples on which the statistic is nan are left out of the interval.
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
    """nan where there are none."""
    array = np.asarray(values, np.float64)
    return float(array.mean()) if len(array) else math.nan


def median(values: ArrayLike) -> float:
    """nan where there are none."""
    array = np.asarray(values, np.float64)
    return float(np.median(array)) if len(array) else math.nan


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Linear correlation; nan where either is constant."""
    a, b = _centred(x), _centred(y)
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else math.nan


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Correlation of ranks; ties share their mean rank."""
    return pearson(stats.rankdata(x), stats.rankdata(y))


def share(hits: ArrayLike) -> Estimate:
    """Share of true values with Wilson's interval; rows must be independent."""
    flags = np.asarray(hits, bool)
    if not len(flags):
        return Estimate(value=math.nan, low=math.nan, high=math.nan, count=0)
    found = int(flags.sum())
    interval = stats.binomtest(found, len(flags)).proportion_ci(LEVEL, method="wilson")
    return Estimate(
        value=found / len(flags),
        low=float(interval.low),
        high=float(interval.high),
        count=len(flags),
    )


def share_below(values: ArrayLike, line: float) -> float:
    """Share of the values at or below the line; nan where there are none."""
    return mean(np.asarray(values, np.float64) <= line)


def upper_quartile(values: ArrayLike) -> float:
    """nan where there are no values."""
    array = np.asarray(values, np.float64)
    return float(np.quantile(array, 0.75)) if len(array) else math.nan


def t_interval(values: ArrayLike) -> Estimate:
    """Mean of independent values (such as one a seed) with Student's interval."""
    array = np.asarray(values, np.float64)
    centre, half = mean(array), math.nan
    if len(array) > 1:
        error = float(array.std(ddof=1)) / math.sqrt(len(array))
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(array) - 1)) * error
    return Estimate(
        value=centre, low=centre - half, high=centre + half, count=len(array)
    )


def paired_difference(a: ArrayLike, b: ArrayLike, *, seed: int) -> PairedDifference:
    """b - a, pair by pair. Raises ValueError where they are not pairs."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"shapes {first.shape} and {second.shape} are not pairs")
    difference = second - first
    return PairedDifference(
        mean=t_interval(difference),
        p_t=_t_p(difference),
        p_wilcoxon=_wilcoxon_p(difference),
        p_sign_flip=_sign_flip_p(difference, seed),
    )


def binned_means(x: ArrayLike, y: ArrayLike, *, bins: int) -> list[Bin]:
    """Means of y in `bins` slices of x with (almost) equally many observations; fewer
    if short.
    """
    x_N, y_N = np.asarray(x, np.float64), np.asarray(y, np.float64)
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
    # A constant's mean may round to its neighbour; its deviations are noise, not
    # spread.
    if not len(array) or array.min() == array.max():
        return np.zeros_like(array)
    centred: Values = array - array.mean()
    return centred


def _t_p(difference: Values) -> float:
    """A spread of exactly 0 leaves nothing to test against: nan, or 0 for a constant
    shift.
    """
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
    """How often random signs give a mean at least as far from 0."""
    count = len(difference)
    if not count:
        return math.nan
    exact = count <= _EXACT_SIGN_FLIPS
    if exact:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        sums = (2 * patterns - 1) @ difference
    else:
        rng = np.random.default_rng(seed)
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
    "binned_means",
    "bootstrap",
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
