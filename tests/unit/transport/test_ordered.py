"""Order-preserving transport against a plain loop of Sinkhorn's updates, and POT."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from topd_ray.transport import TransportProblem, exact, ordered_sinkhorn, sinkhorn

EPSILON = 0.1


def slow_kernel(cost_KL: np.ndarray, *, sigma: float) -> np.ndarray:
    """The kernel of the docstring, entry by entry."""
    num_rows, num_cols = cost_KL.shape
    kernel_KL = np.empty((num_rows, num_cols))
    for row in range(num_rows):
        for col in range(num_cols):
            place = row / num_rows - col / num_cols
            prior = np.exp(-(place**2) / (2 * sigma**2))
            kernel_KL[row, col] = np.exp(-cost_KL[row, col] / EPSILON) * prior
    return kernel_KL


def slow_plan(kernel_KL: np.ndarray) -> np.ndarray:
    num_rows, num_cols = kernel_KL.shape
    v_L = np.ones(num_cols)
    for _ in range(1000):
        u_K = 1 / num_rows / (kernel_KL @ v_L)
        v_L = 1 / num_cols / (kernel_KL.T @ u_K)
    return u_K[:, None] * kernel_KL * v_L


def one(cost_KL: np.ndarray) -> TransportProblem:
    rows, cols = cost_KL.shape
    return TransportProblem(
        torch.from_numpy(cost_KL)[None], torch.tensor([rows]), torch.tensor([cols])
    )


@given(
    cost_KL=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(1, 6)),
        elements=st.floats(0, 0.5),
    ),
    sigma=st.sampled_from([0.2, 0.5, 2.0]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_plan_is_that_of_the_kernel_with_the_prior(cost_KL, sigma) -> None:
    plan = ordered_sinkhorn(one(cost_KL), epsilon=EPSILON, sigma=sigma)
    expected_KL = slow_plan(slow_kernel(cost_KL, sigma=sigma))
    assert np.abs(expected_KL.sum(1) * len(cost_KL) - 1).max() < 1e-10  # oracle is done
    assert plan.converged_W.all()
    np.testing.assert_allclose(plan.plan_WKL[0].numpy(), expected_KL, atol=1e-8)
    assert float(plan.cost_W) == pytest.approx((expected_KL * cost_KL).sum(), abs=1e-7)


def test_a_window_of_50_tokens_has_the_plan_that_pot_finds(window_costs) -> None:
    cost_KL = window_costs(1)[0].numpy()[:, :40]
    sigma = 0.1
    plan = ordered_sinkhorn(one(cost_KL), epsilon=EPSILON, sigma=sigma)
    expected_KL = ot.sinkhorn(
        np.full(50, 1 / 50),
        np.full(40, 1 / 40),
        -EPSILON * np.log(slow_kernel(cost_KL, sigma=sigma)),
        EPSILON,
        method="sinkhorn_log",
        numItermax=20_000,
        stopThr=1e-12,
    )
    np.testing.assert_allclose(plan.plan_WKL[0].numpy(), expected_KL, atol=1e-8)
    assert float(plan.cost_W) == pytest.approx((expected_KL * cost_KL).sum(), abs=1e-6)


def test_swapped_halves_are_near_without_the_prior_and_far_with_it(full) -> None:
    cost_KK = 1 - torch.eye(10)
    swapped = full(torch.roll(cost_KK, 5, dims=1)[None])
    free = sinkhorn(swapped, epsilon=EPSILON)
    ordered = ordered_sinkhorn(swapped, epsilon=EPSILON, sigma=0.05)
    assert float(free.cost_W) < 0.01
    assert float(ordered.cost_W) > 0.9
    same = ordered_sinkhorn(full(cost_KK[None]), epsilon=EPSILON, sigma=0.05)
    assert float(same.cost_W) < 0.01


def test_a_wide_prior_changes_nothing(window_costs, full) -> None:
    problem = full(window_costs(4))
    wide = ordered_sinkhorn(problem, epsilon=EPSILON, sigma=1e4)
    torch.testing.assert_close(
        wide.plan_WKL, sinkhorn(problem, epsilon=EPSILON).plan_WKL, atol=1e-7, rtol=0
    )


def test_bounds_padding_and_a_non_finite_window(window_costs) -> None:
    cost_WKK = window_costs(3, k=12).float()
    cost_WKK[0, 9:] = torch.nan  # padding
    cost_WKK[1, 0, 0] = torch.nan
    sizes_W = torch.tensor([9, 12, 12])
    problem = TransportProblem(cost_WKK, sizes_W, sizes_W)
    plan = ordered_sinkhorn(problem, epsilon=EPSILON, sigma=0.1)
    best = exact(problem)
    assert plan.converged_W.tolist() == [True, False, True]
    assert plan.cost_W.isnan().tolist() == [False, True, False]
    for window in (0, 2):
        assert plan.dual_bound()[window] <= best.cost_W[window] + 1e-5
        assert best.cost_W[window] <= plan.cost_W[window] + 1e-5
    alone = TransportProblem(cost_WKK[:1, :9, :9], sizes_W[:1], sizes_W[:1])
    alone_cost_W = ordered_sinkhorn(alone, epsilon=EPSILON, sigma=0.1).cost_W
    torch.testing.assert_close(alone_cost_W, plan.cost_W[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("epsilon", "sigma"), [(0.1, 0.0), (0.1, -1.0), (-0.05, 0.1)])
def test_widths_must_be_positive(full, epsilon, sigma) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        ordered_sinkhorn(full(torch.zeros(1, 2, 2)), epsilon=epsilon, sigma=sigma)
