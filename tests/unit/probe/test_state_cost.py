"""The ground cost between states against a double loop over tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.probe.cost import state_cost


def states_of(windows: int, tokens: int, *, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(windows, tokens, 5, generator=rng)


def slow_cost(student_KD: torch.Tensor, teacher_LD: torch.Tensor) -> torch.Tensor:
    """One window without padding, in float64."""
    everything = torch.cat([student_KD, teacher_LD]).double()
    centre_D = everything.mean(0)
    rows = [row.double() - centre_D for row in student_KD]
    cols = [col.double() - centre_D for col in teacher_LD]
    return torch.tensor(
        [[float(1 - (u @ v) / (u.norm() * v.norm())) for v in cols] for u in rows]
    )


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4
    ),
    shift=st.sampled_from([0.0, 30.0]),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_pair_costs_what_a_double_loop_says(sizes, shift, seed) -> None:
    student_WKD = states_of(len(sizes), 4, seed=seed) + shift
    teacher_WLD = states_of(len(sizes), 5, seed=seed + 1000) + shift
    num_student_W, num_teacher_W = (
        torch.tensor(column) for column in zip(*sizes, strict=True)
    )
    for window, (rows, cols) in enumerate(sizes):
        student_WKD[window, rows:] = torch.nan  # padding is never read
        teacher_WLD[window, cols:] = torch.nan
    cost_WKL = state_cost(student_WKD, teacher_WLD, num_student_W, num_teacher_W)
    for window, (rows, cols) in enumerate(sizes):
        expected_KL = torch.zeros(4, 5)
        expected_KL[:rows, :cols] = slow_cost(
            student_WKD[window, :rows], teacher_WLD[window, :cols]
        )
        # A shift of 30 costs fp32 a digit and a half of states around 1.
        torch.testing.assert_close(cost_WKL[window], expected_KL, atol=1e-4, rtol=0)


def test_a_common_direction_of_all_states_changes_nothing() -> None:
    student_WKD = states_of(2, 4, seed=0)
    teacher_WLD = states_of(2, 4, seed=1)
    four_W = torch.tensor([4, 4])
    plain = state_cost(student_WKD, teacher_WLD, four_W, four_W)
    shifted = state_cost(student_WKD + 5.0, teacher_WLD + 5.0, four_W, four_W)
    torch.testing.assert_close(shifted, plain, atol=1e-5, rtol=0)


def test_equal_states_cost_nothing_and_the_mean_itself_costs_one() -> None:
    student_WKD = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]])
    cost_KL = state_cost(
        student_WKD, student_WKD, torch.tensor([3]), torch.tensor([3])
    )[0]
    assert cost_KL.tolist() == [[0.0, 2.0, 1.0], [2.0, 0.0, 1.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_non_finite_state_spoils_its_own_window_alone(bad: float) -> None:
    student_WKD = states_of(2, 3, seed=2)
    student_WKD[0, 1, 0] = bad
    three_W = torch.tensor([3, 3])
    cost_WKL = state_cost(student_WKD, states_of(2, 3, seed=3), three_W, three_W)
    assert not cost_WKL[0].isfinite().all()
    assert cost_WKL[1].isfinite().all()
