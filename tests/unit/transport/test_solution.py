"""Rounding makes any plan feasible, and moves no more mass than was misplaced."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.transport.solution import marginal_error, round_to_marginals


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6), cols=st.integers(1, 6))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_nonnegative_plan_is_rounded_onto_its_marginals(seed, rows, cols):
    rng = torch.Generator().manual_seed(seed)
    raw_WKL = torch.rand(1, rows, cols, generator=rng, dtype=torch.float64)
    # Whole rows may be empty.
    raw_WKL = raw_WKL * (torch.rand(1, rows, cols, generator=rng) < 0.7)
    raw_WKL = raw_WKL / raw_WKL.sum().clamp_min(1)
    row_WK = torch.full((1, rows), 1 / rows, dtype=torch.float64)
    col_WL = torch.full((1, cols), 1 / cols, dtype=torch.float64)
    rounded_WKL = round_to_marginals(raw_WKL, row_WK, col_WL)
    assert (rounded_WKL >= 0).all()
    assert float(marginal_error(rounded_WKL, row_WK, col_WL)) < 1e-12
    misplaced_rows = (raw_WKL.sum(2) - row_WK).abs().sum()
    misplaced_cols = (raw_WKL.sum(1) - col_WL).abs().sum()
    moved = float((rounded_WKL - raw_WKL).abs().sum())
    # Altschuler, Weed and Rigollet (2017), lemma 7.
    assert moved <= 2 * float(misplaced_rows + misplaced_cols) + 1e-12


def test_a_feasible_plan_is_left_alone():
    plan_WKL = torch.eye(4)[None] / 4
    quarter_WK = torch.full((1, 4), 0.25)
    torch.testing.assert_close(
        round_to_marginals(plan_WKL, quarter_WK, quarter_WK), plan_WKL
    )


def test_the_marginal_error_is_the_largest_violation_on_either_side():
    plan_WKL = torch.tensor([[[0.5, 0.1], [0.0, 0.4]]])
    half_WK = torch.full((1, 2), 0.5)
    torch.testing.assert_close(
        marginal_error(plan_WKL, half_WK, half_WK), torch.tensor([0.1])
    )
