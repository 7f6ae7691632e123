"""Sinkhorn plans against slow oracles: POT in float64, exact transport, bounds."""

import math

import numpy as np
import ot
import pytest
import torch
from geomloss import ot as geomloss_ot
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from topd_ray.transport import TransportPlan, TransportProblem, exact, sinkhorn
from topd_ray.transport.solution import marginal_error

EPSILON = 0.05


def random_costs(num, k, length, *, seed, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(num, k, length, generator=rng, dtype=dtype)


def assert_feasible(plan: TransportPlan, problem: TransportProblem) -> None:
    row_WK, col_WL = problem.marginals()
    assert (plan.plan_WKL >= 0).all()
    torch.testing.assert_close(plan.plan_WKL.sum(2), row_WK, atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.plan_WKL.sum(1), col_WL, atol=1e-6, rtol=0)


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_plan_is_feasible_and_lies_between_its_lower_bound_and_the_entropic_gap(
    data,
):
    rows, cols = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    values = hnp.arrays(np.float32, (1, rows, cols), elements=st.floats(0, 2, width=32))
    problem = TransportProblem(
        torch.from_numpy(data.draw(values)), torch.tensor([rows]), torch.tensor([cols])
    )
    epsilon = data.draw(st.sampled_from([1e-3, 0.02, 0.05, 0.2, 3.0]))
    plan = sinkhorn(
        problem, epsilon=epsilon, max_iter=data.draw(st.sampled_from([1, 9, 64]))
    )
    optimum = float(exact(problem).cost_W)
    assert_feasible(plan, problem)
    # Costs are at most 2, marginals right to 1e-6 on 6 rows: fp32 can move D_OT by
    # about 1e-5.
    assert float(plan.dual_bound()) <= optimum + 1e-5
    assert float(plan.cost_W) >= optimum - 1e-5
    if plan.converged_W:
        # Rounding moves twice the two L1 errors allowed, at a cost of 2.
        slack = 2 * 2 * 2 * 5e-3
        assert float(plan.cost_W) <= optimum + epsilon * math.log(rows) + slack


@pytest.mark.parametrize("substituted", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("epsilon", [0.2, 0.05, 0.02, 0.005, 0.001])
def test_by_default_d_ot_is_right_to_single_precision(
    window_costs, full, substituted, epsilon
):
    cost_WKK = window_costs(12, substituted=substituted)
    quick = sinkhorn(full(cost_WKK.float()), epsilon=epsilon)
    reference = sinkhorn(full(cost_WKK), epsilon=epsilon, max_iter=400)
    # A float64 plan of this form with these marginals is the optimum, so marginals are
    # all there is to check of the reference.
    assert reference.marginal_error_W.max() < 1e-12
    assert quick.converged_W.all()
    # Columns are right to 6e-6 of 1 / 50, rows to the rounding of a sum of 50.
    assert quick.marginal_error_W.max() < 4e-7
    # Moving 4e-7 of mass at each of 50 columns costs 2 at most.
    torch.testing.assert_close(
        quick.cost_W.double(), reference.cost_W, atol=4e-5, rtol=0
    )
    bound_W = quick.dual_bound().double()
    torch.testing.assert_close(bound_W, reference.dual_bound(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("substituted", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("epsilon", [0.2, 0.05])
def test_by_geomloss_the_plan_is_the_same_to_its_accuracy(
    window_costs, full, substituted, epsilon
):
    problem = full(window_costs(12, substituted=substituted).float())
    plan = sinkhorn(problem, epsilon=epsilon, way="geomloss")
    other = sinkhorn(problem, epsilon=epsilon)
    assert plan.converged_W.all()
    assert_feasible(plan, problem)
    assert plan.marginal_error_W.max() < 5e-5
    torch.testing.assert_close(plan.cost_W, other.cost_W, atol=1e-3, rtol=0)
    torch.testing.assert_close(plan.dual_bound(), other.dual_bound(), atol=5e-3, rtol=0)


def test_by_geomloss_a_window_does_not_depend_on_its_batch_or_padding(
    window_costs, full
):
    cost_WKK = window_costs(6, k=20).float()
    together = sinkhorn(full(cost_WKK), way="geomloss")
    padded_WLL = torch.nn.functional.pad(cost_WKK, (0, 30, 0, 30))
    size_W = torch.full((6,), 20)
    padded = sinkhorn(TransportProblem(padded_WLL, size_W, size_W), way="geomloss")
    torch.testing.assert_close(padded.cost_W, together.cost_W, atol=1e-5, rtol=0)
    for window in range(6):
        alone = sinkhorn(full(cost_WKK[window : window + 1]), way="geomloss")
        torch.testing.assert_close(
            alone.cost_W, together.cost_W[window : window + 1], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("highest", [0.0, 0.5, 2.0])
def test_costs_that_are_all_or_nothing_do_not_overflow(full, highest):
    rng = torch.Generator().manual_seed(0)
    cost_WKL = highest * (torch.rand(200, 12, 9, generator=rng) < 0.5)
    for epsilon in (0.05, 0.03, 0.029, 0.002):
        problem = full(cost_WKL)
        plan = sinkhorn(problem, epsilon=epsilon)
        assert_feasible(plan, problem)
        assert plan.converged_W.all()


@pytest.mark.parametrize("k", [1, 7, 50])
def test_d_ot_exceeds_the_exact_cost_by_at_most_epsilon_log_k(window_costs, full, k):
    problem = full(window_costs(12, k=k))
    plan, best = sinkhorn(problem), exact(problem)
    assert plan.converged_W.all()
    assert (plan.dual_bound() <= best.cost_W + 1e-12).all()
    assert (best.cost_W <= plan.cost_W + 1e-12).all()
    assert (plan.cost_W <= best.cost_W + EPSILON * math.log(k) + 1e-12).all()


@pytest.mark.parametrize(("k", "length"), [(12, 12), (5, 9), (9, 5)])
def test_a_converged_plan_is_the_one_pot_finds(full, k, length):
    cost_WKL = random_costs(6, k, length, seed=3)
    plan = sinkhorn(full(cost_WKL), epsilon=0.1, max_iter=1000)
    row_K = np.full(k, 1 / k)
    col_L = np.full(length, 1 / length)
    for window in range(6):
        oracle_KL = ot.sinkhorn(
            row_K,
            col_L,
            cost_WKL[window].numpy(),
            0.1,
            numItermax=20_000,
            stopThr=1e-13,
        )
        np.testing.assert_allclose(plan.plan_WKL[window].numpy(), oracle_KL, atol=1e-9)


def test_a_plan_that_epsilon_was_halved_for_is_the_one_pot_finds_in_the_log_domain(
    full,
):
    cost_WKK = 0.3 * random_costs(4, 5, 5, seed=5)
    plan = sinkhorn(full(cost_WKK), epsilon=0.02)
    weight_K = np.full(5, 1 / 5)
    for window in range(4):
        oracle_KK = ot.sinkhorn(
            weight_K,
            weight_K,
            cost_WKK[window].numpy(),
            0.02,
            method="sinkhorn_log",
            numItermax=20_000,
            stopThr=1e-12,
        )
        np.testing.assert_allclose(plan.plan_WKL[window].numpy(), oracle_KK, atol=1e-8)


def test_a_converged_plan_is_the_one_geomloss_goes_to(full):
    cost_WKL = random_costs(6, 9, 7, seed=4)
    problem = full(cost_WKL)
    row_WK, col_WL = problem.marginals()
    official = geomloss_ot.solve_batch(
        cost_WKL, reg=0.2, a=row_WK, b=col_WL, max_iter=2000
    )
    error = float(marginal_error(official.plan, row_WK, col_WL).max())
    assert error < 1e-3  # it anneals down to the last iteration, so its marginals lag
    plan_WKL = sinkhorn(problem, epsilon=0.2).plan_WKL
    torch.testing.assert_close(plan_WKL, official.plan, atol=10 * error, rtol=0)


def test_swapping_student_and_teacher_transposes_the_plan(full):
    cost_WKL = random_costs(8, 7, 11, seed=1)
    plan = sinkhorn(full(cost_WKL), epsilon=0.1, max_iter=1000)
    swapped = sinkhorn(full(cost_WKL.transpose(1, 2)), epsilon=0.1, max_iter=1000)
    torch.testing.assert_close(
        swapped.plan_WKL.transpose(1, 2), plan.plan_WKL, atol=1e-9, rtol=0
    )


def test_swapping_changes_the_default_fp32_d_ot_by_rounding_only(window_costs, full):
    cost_WKK = window_costs(12).float()
    swapped = sinkhorn(full(cost_WKK.transpose(1, 2)))
    torch.testing.assert_close(
        swapped.cost_W, sinkhorn(full(cost_WKK)).cost_W, atol=4e-5, rtol=0
    )


def test_permuting_tokens_permutes_the_plan(window_costs, full):
    cost_WKK = window_costs(4, k=20)
    rng = torch.Generator().manual_seed(5)
    rows = torch.randperm(20, generator=rng)
    cols = torch.randperm(20, generator=rng)
    plan_WKK = sinkhorn(full(cost_WKK)).plan_WKL
    permuted_WKK = sinkhorn(full(cost_WKK[:, rows][:, :, cols])).plan_WKL
    torch.testing.assert_close(
        permuted_WKK, plan_WKK[:, rows][:, :, cols], atol=1e-12, rtol=0
    )


def test_identical_windows_cost_nothing(window_costs, full):
    plan = sinkhorn(full(window_costs(8, substituted=0.0).float()))
    assert plan.converged_W.all()
    assert plan.cost_W.max() <= 1e-5


def test_one_token_is_spread_over_all_teacher_tokens(full):
    cost_WKL = random_costs(3, 1, 9, seed=2)
    wide = sinkhorn(full(cost_WKL))
    tall = sinkhorn(full(cost_WKL.transpose(1, 2)))
    torch.testing.assert_close(wide.plan_WKL, torch.full((3, 1, 9), 1 / 9).double())
    torch.testing.assert_close(wide.cost_W, cost_WKL.mean((1, 2)))
    torch.testing.assert_close(tall.cost_W, wide.cost_W)
    assert (wide.converged_W & tall.converged_W).all()


def test_tokens_that_all_agree_share_their_mass_evenly(full):
    plan = sinkhorn(full(torch.zeros(1, 4, 6)))
    torch.testing.assert_close(plan.plan_WKL, torch.full((1, 4, 6), 1 / 24))
    assert float(plan.cost_W) == 0.0


def test_duplicated_tokens_get_the_same_row(full):
    cost_WKL = random_costs(1, 5, 8, seed=4)
    cost_WKL[:, 3] = cost_WKL[:, 0]
    plan_WKL = sinkhorn(full(cost_WKL)).plan_WKL
    torch.testing.assert_close(plan_WKL[:, 3], plan_WKL[:, 0], atol=1e-12, rtol=0)


def test_too_few_iterations_leave_a_plan_that_is_not_converged(window_costs, full):
    problem = full(window_costs(4))
    hasty = sinkhorn(problem, max_iter=2)
    assert not hasty.converged_W.any()
    assert (hasty.marginal_error_W > 1e-3).all()
    assert_feasible(hasty, problem)
