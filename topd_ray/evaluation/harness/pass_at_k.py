"""Compute Avg@k and Pass@k of repeated answers, with bootstrap intervals.

Axes: P problems, B bootstrap draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

BOOTSTRAP_DRAWS = 10_000
DRAWS_AT_ONCE = 500
"""Draws that are held in memory together: so many rows of P counts."""
COVERAGE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate:
    """A mean over problems and its 95 % interval (percentile bootstrap over problems).

    The interval says how much the problems differ. Where all have the same rate it is a
    point, which does not mean that the next problem could not differ.

    Example: `PassRate(value=0.45, low=0.31, high=0.59)`.
    """

    value: float
    low: float
    high: float


def pass_at_k(
    num_correct_P: Int64[np.ndarray, "P"], *, num_samples: int, k: int
) -> Float64[np.ndarray, "P"]:
    """Return the probability that one of k answers of a problem is right.

    1 - C(n - c, k) / C(n, k), which is unbiased for the pass rate of k fresh answers
    (Chen et al. 2021, "Evaluating Large Language Models Trained on Code").

    Args:
        num_correct_P: right answers of each problem, 0 to n.
        num_samples: n, the answers drawn for each problem.
        k: answers drawn from those n without replacement.

    Returns:
        The probability for each problem, (P,), float64.

    Raises:
        ValueError: k is not in 1 .. n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k}: expected 1 to num_samples={num_samples}")
    # Whole numbers are exact; a product of float factors loses digits for large n.
    all_ways = math.comb(num_samples, k)
    return np.array(
        [1 - math.comb(num_samples - int(c), k) / all_ways for c in num_correct_P]
    )


def powers_of_two(largest: int) -> list[int]:
    """Return 1, 2, 4, ... up to `largest`."""
    return [2**exponent for exponent in range(largest.bit_length())]


def estimate_pass_rate(
    groups: Sequence[Float64[np.ndarray, "_"]], *, seed: int
) -> PassRate:
    """Return the mean of the groups' means, with its bootstrap interval.

    A group is the problems of one benchmark. Several benchmarks count equally, however
    many problems each has; a bootstrap draw resamples the problems inside each.

    Args:
        groups: pass rates of each group's problems, (P,) each, P differs.
        seed: fixes the bootstrap draws, so the same seed gives the same interval.

    Returns:
        The mean and its 95 % interval.

    Raises:
        ValueError: there is no group, or one without problems.
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
    """Return means of BOOTSTRAP_DRAWS samples of P problems, with replacement."""
    num_problems = len(values_P)
    means = []
    for start in range(0, BOOTSTRAP_DRAWS, DRAWS_AT_ONCE):
        rows = min(DRAWS_AT_ONCE, BOOTSTRAP_DRAWS - start)
        chosen_BP = draws.integers(num_problems, size=(rows, num_problems))
        means.append(values_P[chosen_BP].mean(axis=1))
    return np.concatenate(means)


__all__ = ["PassRate", "estimate_pass_rate", "pass_at_k", "powers_of_two"]
