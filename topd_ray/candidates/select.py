"""Select the highest-scored positions of a response.

Axes: N response tokens, W positions picked, E eligible positions.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def num_to_pick(num_tokens: int, *, fraction: float, min_count: int) -> int:
    """Return how many positions of a response are candidates.

    Decision D2: max(min_count, round(fraction * num_tokens)). The paper (appendix B.2)
    has m = 218 of N = 9688 tokens, a fraction of 0.0225.

    Args:
        num_tokens: Length of the response.
        fraction: Share of its tokens.
        min_count: Least number of candidates of any response.

    Returns:
        The number for a response with that many eligible positions; a response with
        fewer has fewer candidates.
    """
    return max(min_count, round(fraction * num_tokens))


def select_positions(
    score_N: NDArray[np.float32] | NDArray[np.float64],
    *,
    count: int,
    min_window: int,
    taken: Iterable[int] = (),
) -> NDArray[np.int32]:
    """Return the eligible positions with the highest scores.

    The "high-loss candidate positions" of the paper (section 3) when the score is the
    token loss. Controls have the negative loss, or random numbers, for a score.

    Args:
        score_N: Score of each response position. A position with nan is not eligible.
        count: How many positions to pick.
        min_window: A position is eligible with at least this many tokens from it to the
            end, itself included.
        taken: Positions of other groups, which are not eligible.

    Returns:
        W <= count positions, ascending; fewer than `count` where fewer are eligible. Of
        equal scores the earlier position is picked.
    """
    score_E = score_N[: max(0, len(score_N) - min_window + 1)]
    is_eligible_E = ~np.isnan(score_E)
    is_eligible_E[[t for t in taken if t < len(score_E)]] = False
    eligible_E = np.flatnonzero(is_eligible_E)
    # Stable, so that ties go to the earlier position on every machine.
    best_first_E = np.argsort(-score_E[eligible_E], kind="stable")
    return np.sort(eligible_E[best_first_E[:count]]).astype(np.int32)
