"""Exact transport against brute force and POT."""

from itertools import permutations

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.transport import TransportProblem, exact


@given(k=st.integers(1, 4), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_no_permutation_beats_the_exact_assignment(k, seed):
    rng = torch.Generator().manual_seed(seed)
    cost_KK = 2 * torch.rand(k, k, generator=rng, dtype=torch.float64)
    plan = exact(TransportProblem(cost_KK[None], torch.tensor([k]), torch.tensor([k])))
    rows = torch.arange(k)
    best = min(
        float(cost_KK[rows, torch.tensor(p)].mean()) for p in permutations(range(k))
    )
    assert float(plan.cost_W) == pytest.approx(best, abs=1e-12)
    assert plan.converged_W.all()


@pytest.mark.parametrize(("k", "length"), [(1, 6), (6, 1), (4, 9), (9, 4), (7, 7)])
def test_any_two_lengths_cost_what_pot_says(full, k, length):
    rng = torch.Generator().manual_seed(k)
    cost_WKL = 2 * torch.rand(3, k, length, generator=rng, dtype=torch.float64)
    plan = exact(full(cost_WKL))
    for window in range(3):
        oracle = ot.emd2(
            np.full(k, 1 / k), np.full(length, 1 / length), cost_WKL[window].numpy()
        )
        assert float(plan.cost_W[window]) == pytest.approx(oracle, abs=1e-12)
    assert plan.marginal_error_W.max() < 1e-12


def test_padding_stays_empty_and_a_non_finite_window_changes_no_other():
    rng = torch.Generator().manual_seed(0)
    cost_WKL = 2 * torch.rand(3, 5, 6, generator=rng)
    cost_WKL[0, 4] = torch.nan  # padding
    cost_WKL[1, 0, 0] = torch.nan
    rows_W = torch.tensor([3, 5, 5])
    cols_W = torch.tensor([3, 6, 4])
    plan = exact(TransportProblem(cost_WKL, rows_W, cols_W))
    assert plan.converged_W.tolist() == [True, False, True]
    assert plan.plan_WKL[1].eq(0).all()
    assert plan.cost_W.isnan().tolist() == [False, True, False]
    assert plan.plan_WKL[0, 3:].eq(0).all()
    assert plan.plan_WKL[2, :, 4:].eq(0).all()
    torch.testing.assert_close(plan.plan_WKL.sum((1, 2)), torch.tensor([1.0, 0.0, 1.0]))


def test_an_empty_batch_gives_an_empty_plan():
    none_W = torch.zeros(0, dtype=torch.long)
    assert exact(
        TransportProblem(torch.zeros(0, 3, 3), none_W, none_W)
    ).cost_W.shape == (0,)
