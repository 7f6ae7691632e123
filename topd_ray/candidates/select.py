"""Which positions of a response are worth a probe.

Axes: N response tokens, W positions picked, E eligible positions.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def num_to_pick(num_tokens: int, *, fraction: float, min_count: int) -> int:
    """How many positions of a response of `num_tokens` are candidates, were all
    eligible (D2).
    """
    return max(min_count, round(fraction * num_tokens))


def select_positions(
    score_N: NDArray[np.float32] | NDArray[np.float64],
    *,
    count: int,
    min_window: int,
    taken: Iterable[int] = (),
) -> NDArray[np.int32]:
    """The `count` highest-scored positions, ascending; fewer where fewer are eligible.

    Eligible are positions with at least `min_window` tokens left, their own included,
    that are not `taken` by another group. Ties go to the earlier position; nan is never
    picked. The score is the token loss for candidates; for controls its negative, or
    random numbers.
    """
    score_E = score_N[: max(0, len(score_N) - min_window + 1)]
    is_eligible_E = ~np.isnan(score_E)
    is_eligible_E[[t for t in taken if t < len(score_E)]] = False
    eligible_E = np.flatnonzero(is_eligible_E)
    best_first_E = np.argsort(-score_E[eligible_E], kind="stable")
    return np.sort(eligible_E[best_first_E[:count]]).astype(np.int32)
