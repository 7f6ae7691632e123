"""The selector against a slow, obvious oracle."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from topd_ray.candidates import num_to_pick, select_positions

losses = hnp.arrays(
    np.float32,
    st.integers(0, 40),
    elements=st.one_of(
        st.floats(-3, 3, width=32),
        st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf]),
    ),
)


def oracle(
    loss: NDArray[np.float32], count: int, min_window: int, taken: set[int]
) -> list[int]:
    eligible = [
        t
        for t in range(len(loss))
        if len(loss) - t >= min_window and not math.isnan(loss[t]) and t not in taken
    ]
    return sorted(sorted(eligible, key=lambda t: (-loss[t], t))[:count])


@settings(deadline=None)
@given(
    loss_N=losses,
    count=st.integers(0, 45),
    min_window=st.integers(1, 12),
    taken=st.sets(st.integers(0, 39), max_size=20),
)
def test_the_selection_is_the_oracles(
    loss_N: NDArray[np.float32], count: int, min_window: int, taken: set[int]
) -> None:
    picked = select_positions(loss_N, count=count, min_window=min_window, taken=taken)
    assert picked.tolist() == oracle(loss_N, count, min_window, taken)
    assert picked.dtype == np.int32


def test_the_papers_share_of_a_long_rollout() -> None:
    assert num_to_pick(9688, fraction=0.0225, min_count=1) == 218


def test_a_short_rollout_has_the_least_number_of_candidates() -> None:
    assert num_to_pick(10, fraction=0.0225, min_count=2) == 2


def test_ties_go_to_the_earlier_position() -> None:
    loss_N = np.array([1, 2, 2, 2, 0], dtype=np.float32)
    assert select_positions(loss_N, count=2, min_window=1).tolist() == [1, 2]


def test_the_last_eligible_position_has_just_min_window_tokens_left() -> None:
    loss_N = np.arange(10, dtype=np.float32)
    assert select_positions(loss_N, count=1, min_window=3).tolist() == [7]


@pytest.mark.parametrize("num_tokens", [0, 1, 7])
def test_a_response_shorter_than_a_window_has_no_candidate(num_tokens: int) -> None:
    loss_N = np.ones(num_tokens, dtype=np.float32)
    assert select_positions(loss_N, count=num_tokens, min_window=8).shape == (0,)


def test_low_loss_controls_come_from_the_negated_loss() -> None:
    loss_N = np.array([3, 1, 2, 0, 5, 4], dtype=np.float32)
    assert select_positions(-loss_N, count=2, min_window=1).tolist() == [1, 3]
