"""Which positions of a response are worth a probe.

Axes: N response tokens, W positions picked, E eligible positions.
"""

import numpy as np
from numpy.typing import NDArray


def select_positions(
    token_loss_N: NDArray[np.float32], *, fraction: float, min_count: int, min_window: int
) -> NDArray[np.int32]:
    """The highest-loss positions, ascending: max(min_count, round(fraction * N)) of them.

    Eligible are positions with at least `min_window` tokens left, their own included; fewer are
    picked where fewer are eligible. Ties go to the earlier position; nan is never picked. Control
    groups come from the same rule with another score: -loss, or random numbers.
    """
    num_tokens = len(token_loss_N)
    count = max(min_count, round(fraction * num_tokens))
    loss_E = token_loss_N[: max(0, num_tokens - min_window + 1)]
    eligible_E = np.flatnonzero(~np.isnan(loss_E))
    best_first_E = np.argsort(-loss_E[eligible_E], kind="stable")
    return np.sort(eligible_E[best_first_E[:count]]).astype(np.int32)
