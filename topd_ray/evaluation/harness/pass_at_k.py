"""Avg@k and Pass@k of repeated answers, with bootstrap intervals over problems.

Axes: P problems, B bootstrap draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

BOOTSTRAP_DRAWS = 10_000
DRAWS_AT_ONCE = 500
"""Bounds the memory of one go: so many rows of P counts."""
COVERAGE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate:
    """A mean over problems and its 95 % interval (percentile bootstrap over problems).

    Where all problems fare alike there is nothing to resample, and the interval is a
    point: it says how the problems differ, not that the next one could not.
    """

    value: float
    low: float
    high: float


def pass_at_k(
    num_correct_P: Int64[np.ndarray, "P"], *, num_samples: int, k: int
) -> Float64[np.ndarray, "P"]:
    """Chance that k of a problem's `num_samples` answers, drawn without replacement,
    hold a hit.

    1 - C(n - c, k) / C(n, k): unbiased for the pass rate of k fresh answers (Chen et
    al. 2021).
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k}: expected 1 to num_samples={num_samples}")
    all_ways = math.comb(num_samples, k)
    return np.array(
        [1 - math.comb(num_samples - int(c), k) / all_ways for c in num_correct_P]
    )


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, … up to `largest`."""
    return [2**exponent for exponent in range(largest.bit_length())]


def estimate_pass_rate(
    groups: Sequence[Float64[np.ndarray, "P"]], *, seed: int
) -> PassRate:
    """Mean of the groups' means; a draw resamples the problems of each group on their
    own.

    One group: the mean over one benchmark's problems. Several: the average over
    benchmarks, each of equal weight whatever its size. The same seed gives the same
    interval.
    """
    if not groups or any(len(values_P) == 0 for values_P in groups):
        raise ValueError("no problems: nothing to average")
    draws = np.random.default_rng(seed)
    means_B = np.mean(
        [_resampled_means(values_P, draws) for values_P in groups], axis=0
    )
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(means_B, [tail, 1 - tail])
    value = float(np.mean([values_P.mean() for values_P in groups]))
    # Rounding must not put the mean of equal values outside its own interval.
    return PassRate(
        value=value, low=min(float(low), value), high=max(float(high), value)
    )


def _resampled_means(
    values_P: Float64[np.ndarray, "P"], draws: np.random.Generator
) -> Float64[np.ndarray, "B"]:
    """Means of BOOTSTRAP_DRAWS samples of P problems, drawn with replacement."""
    num_problems = len(values_P)
    means = []
    for start in range(0, BOOTSTRAP_DRAWS, DRAWS_AT_ONCE):
        rows = min(DRAWS_AT_ONCE, BOOTSTRAP_DRAWS - start)
        chosen_BP = draws.integers(num_problems, size=(rows, num_problems))
        means.append(values_P[chosen_BP].mean(axis=1))
    return np.concatenate(means)


__all__ = ["PassRate", "estimate_pass_rate", "pass_at_k", "powers_of_two"]
