"""Scaling a kernel onto marginals: the plan, its form, kernels without a solution."""

import pytest
import torch

from topd_ray.transport.scaling import _Fit, fit_plan


def kernel_of(num, k, length, *, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(num, k, length, generator=rng, dtype=torch.float64)


def uniform(num, k):
    return torch.full((num, k), 1 / k, dtype=torch.float64)


@pytest.mark.parametrize("num_halvings", [0, 1, 3])
def test_the_plan_is_the_kernels_power_between_two_scalings(num_halvings):
    kernel_WKL = kernel_of(3, 5, 4)
    row_WK = uniform(3, 5)
    col_WL = uniform(3, 4)
    plan_WKL, log_WK = fit_plan(
        kernel_WKL, row_WK, col_WL, num_halvings=num_halvings, max_iter=60
    )
    torch.testing.assert_close(plan_WKL.sum(2), row_WK, atol=1e-14, rtol=0)
    torch.testing.assert_close(plan_WKL.sum(1), col_WL, atol=1e-12, rtol=0)
    power_WKL = kernel_WKL ** (2**num_halvings)
    v_WKL = plan_WKL / (log_WK.exp()[:, :, None] * power_WKL)
    torch.testing.assert_close(v_WKL, v_WKL[:, :1].expand_as(v_WKL), atol=0, rtol=1e-9)


def test_padding_gets_no_mass_and_changes_nothing():
    kernel_WKL = kernel_of(2, 5, 4)
    padded_WKL = torch.zeros(2, 7, 5, dtype=torch.float64)
    padded_WKL[:, :5, :4] = kernel_WKL
    row_WK = torch.nn.functional.pad(uniform(2, 5), (0, 2))
    col_WL = torch.nn.functional.pad(uniform(2, 4), (0, 1))
    padded, log_WK = fit_plan(padded_WKL, row_WK, col_WL, num_halvings=1, max_iter=60)
    plan, log_5 = fit_plan(
        kernel_WKL, uniform(2, 5), uniform(2, 4), num_halvings=1, max_iter=60
    )
    torch.testing.assert_close(padded[:, :5, :4], plan, atol=1e-14, rtol=0)
    torch.testing.assert_close(log_WK[:, :5], log_5, atol=1e-12, rtol=0)
    assert padded[:, 5:].eq(0).all()
    assert padded[:, :, 4:].eq(0).all()
    assert log_WK[:, 5:].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_halvings", [0, 4])
def test_a_kernel_that_no_scaling_fits_leaves_a_finite_plan(dtype, num_halvings):
    kernel_WKL = torch.tensor(
        [[[1.0, 1.0], [0.0, 0.0]], [[1.0, 1e-30], [1.0, 0.0]]]
    ).to(dtype)
    half_WK = torch.full((2, 2), 0.5, dtype=dtype)
    plan_WKL, log_WK = fit_plan(
        kernel_WKL, half_WK, half_WK, num_halvings=num_halvings, max_iter=60
    )
    assert plan_WKL.isfinite().all()
    assert (plan_WKL >= 0).all()
    assert log_WK.isfinite().all()


def test_a_newton_step_near_the_solution_squares_the_error():
    fit = _Fit.start(kernel_of(4, 6, 5), uniform(4, 6), uniform(4, 5))
    fit.relax(8)
    fit.update_rows()
    before = float((5 * fit.column_mass() - 1).abs().max())
    fit.newton_step()
    fit.update_rows()
    assert float((5 * fit.column_mass() - 1).abs().max()) < 10 * before**2 + 1e-14


def test_where_no_hessian_can_be_factorised_the_step_is_a_plain_update():
    fit = _Fit.start(
        torch.ones(1, 3, 3, dtype=torch.float64), uniform(1, 3), uniform(1, 3)
    )
    # Rows far too heavy: the Hessian is not positive definite.
    fit.u_WK = fit.u_WK * torch.tensor([2.0, 1.0, 1.0])
    mass_WL = fit.column_mass()
    fit.newton_step()
    step_WL = (1 / 3 - mass_WL) / mass_WL
    torch.testing.assert_close(fit.v_WL, step_WL.exp())
