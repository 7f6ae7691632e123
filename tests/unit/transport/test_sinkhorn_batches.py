"""A window's plan does not depend on its batch, its padding or poisoned windows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.transport import TransportProblem, sinkhorn


def select(problem: TransportProblem, keep_W) -> TransportProblem:
    return TransportProblem(
        problem.cost_WKL[keep_W], problem.num_rows_W[keep_W], problem.num_cols_W[keep_W]
    )


def ragged(cost_WKL: torch.Tensor, seed: int) -> TransportProblem:
    num, k, length = cost_WKL.shape
    rng = torch.Generator().manual_seed(seed)
    rows_W = torch.randint(1, k + 1, (num,), generator=rng)
    return TransportProblem(
        cost_WKL, rows_W, torch.randint(1, length + 1, (num,), generator=rng)
    )


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 1.0))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_plan_depends_on_neither_its_batch_nor_its_padding(seed, scale):
    rng = torch.Generator().manual_seed(seed)
    scale_W = torch.tensor([scale, 1.0, 0.1, 0.5])
    problem = ragged(
        2 * torch.rand(4, 9, 7, generator=rng) * scale_W[:, None, None], seed
    )
    together = sinkhorn(problem)
    for window in range(4):
        rows = int(problem.num_rows_W[window])
        cols = int(problem.num_cols_W[window])
        alone = sinkhorn(
            TransportProblem(
                problem.cost_WKL[window : window + 1, :rows, :cols],
                torch.tensor([rows]),
                torch.tensor([cols]),
            )
        )
        plan_KL = together.plan_WKL[window]
        torch.testing.assert_close(
            plan_KL[:rows, :cols], alone.plan_WKL[0], atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            together.cost_W[window], alone.cost_W[0], atol=1e-6, rtol=0
        )
        assert plan_KL[rows:].eq(0).all()
        assert plan_KL[:, cols:].eq(0).all()


def test_the_costs_of_one_window_do_not_anneal_another(window_costs, full):
    """Few updates, so that a first epsilon that depends on the batch would show."""
    small_WKK = 0.1 * window_costs(3, k=20)
    wild_WKK = torch.cat([small_WKK, 2 * torch.eye(20, dtype=torch.float64)[None]])
    alone = sinkhorn(full(small_WKK), max_iter=9)
    beside = sinkhorn(full(wild_WKK), max_iter=9)
    torch.testing.assert_close(beside.plan_WKL[:3], alone.plan_WKL, atol=1e-12, rtol=0)


def test_padding_is_never_read(window_costs):
    problem = ragged(window_costs(6, k=12), seed=0)
    garbled_WKL = problem.cost_WKL.clone()
    for window in range(6):
        garbled_WKL[window, problem.num_rows_W[window] :] = torch.nan
        garbled_WKL[window, :, problem.num_cols_W[window] :] = -1e30
    garbled = sinkhorn(
        TransportProblem(garbled_WKL, problem.num_rows_W, problem.num_cols_W)
    )
    clean = sinkhorn(problem)
    assert garbled.converged_W.all()
    torch.testing.assert_close(garbled.plan_WKL, clean.plan_WKL, atol=0, rtol=0)


@pytest.mark.parametrize("epsilon", [0.05, 0.01])
def test_windows_that_take_longer_leave_those_that_are_done_alone(
    window_costs, full, epsilon
):
    easy_WKK = window_costs(3, substituted=0.0)
    hard_WKK = window_costs(3, substituted=0.3)
    mixed = sinkhorn(full(torch.cat([easy_WKK, hard_WKK])), epsilon=epsilon)
    for cost_WKK, part in ((easy_WKK, slice(3)), (hard_WKK, slice(3, 6))):
        alone = sinkhorn(full(cost_WKK), epsilon=epsilon)
        torch.testing.assert_close(
            mixed.plan_WKL[part], alone.plan_WKL, atol=1e-13, rtol=0
        )


def test_a_batch_larger_than_a_chunk_gives_each_window_its_own_plan(window_costs, full):
    problem = full(window_costs(500).float())
    assert problem.cost_WKL.numel() > 2**20
    last = slice(450, 500)
    together = sinkhorn(problem)
    apart = sinkhorn(select(problem, last))
    torch.testing.assert_close(
        together.plan_WKL[last], apart.plan_WKL, atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        together.dual_bound()[last], apart.dual_bound(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_window_with_a_non_finite_cost_changes_no_other(window_costs, full, poison):
    cost_WKK = window_costs(5, k=12).float()
    healthy = sinkhorn(full(cost_WKK))
    cost_WKK[2, 3, 4] = poison
    plan = sinkhorn(full(cost_WKK))
    others = [0, 1, 3, 4]
    torch.testing.assert_close(
        plan.plan_WKL[others], healthy.plan_WKL[others], atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        plan.cost_W[others], healthy.cost_W[others], atol=1e-6, rtol=0
    )
    assert plan.converged_W.tolist() == [True, True, False, True, True]
    assert plan.plan_WKL[2].eq(0).all()
    for value_W in (plan.cost_W, plan.dual_bound(), plan.marginal_error_W):
        assert value_W.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("shape", [(0, 5, 4), (0, 0, 0)])
def test_an_empty_batch_gives_an_empty_plan(shape):
    none_W = torch.zeros(0, dtype=torch.long)
    plan = sinkhorn(TransportProblem(torch.zeros(shape), none_W, none_W))
    assert plan.plan_WKL.shape == shape
    assert plan.converged_W.shape == plan.cost_W.shape == (0,)


@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode_is_left_as_it_was_and_a_plan_carries_no_gradient(full, enabled):
    cost_WKL = torch.ones(1, 2, 2, requires_grad=True)
    with torch.set_grad_enabled(enabled):
        plan = sinkhorn(full(cost_WKL))
        assert torch.is_grad_enabled() is enabled
    assert not plan.plan_WKL.requires_grad
    assert not plan.cost_W.requires_grad


@pytest.mark.parametrize(
    ("given_dtype", "solved_in"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_costs_are_solved_in_fp32(
    window_costs, full, given_dtype, solved_in
):
    cost_WKK = window_costs(3, k=10).to(given_dtype)
    plan = sinkhorn(full(cost_WKK))
    upcast = sinkhorn(full(cost_WKK.to(solved_in)))
    assert plan.plan_WKL.dtype == plan.cost_W.dtype == solved_in
    torch.testing.assert_close(plan.plan_WKL, upcast.plan_WKL, atol=0, rtol=0)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, float("nan"), float("inf")])
def test_an_impossible_epsilon_is_refused(full, epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        sinkhorn(full(torch.ones(1, 2, 2)), epsilon=epsilon)


def test_no_iterations_at_all_are_refused(full):
    with pytest.raises(ValueError, match="max_iter=0"):
        sinkhorn(full(torch.ones(1, 2, 2)), max_iter=0)


@pytest.mark.parametrize("cost", [-0.5, 2.5])
def test_a_cost_outside_the_annealed_range_is_refused(full, cost):
    with pytest.raises(ValueError, match="outside"):
        sinkhorn(full(torch.full((1, 2, 2), cost)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_plan_on_the_gpu_is_the_plan_on_the_cpu(window_costs, full):
    cost_WKK = window_costs(8).float()
    on_gpu = sinkhorn(full(cost_WKK.cuda()))
    on_cpu = sinkhorn(full(cost_WKK))
    assert on_gpu.plan_WKL.is_cuda
    torch.testing.assert_close(
        on_gpu.plan_WKL.cpu(), on_cpu.plan_WKL, atol=1e-5, rtol=0
    )
