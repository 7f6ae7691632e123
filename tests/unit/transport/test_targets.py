"""Soft targets are distributions, row by row."""

import torch

from topd_ray.transport import TransportProblem, exact, sinkhorn, soft_targets


def test_each_true_row_is_the_plan_row_scaled_to_one(window_costs):
    rows_W = torch.tensor([50, 20, 1])
    cols_W = torch.tensor([50, 50, 3])
    plan_WKL = sinkhorn(
        TransportProblem(window_costs(3).float(), rows_W, cols_W)
    ).plan_WKL
    target_WKL = soft_targets(plan_WKL, rows_W)
    for window, rows in enumerate(rows_W.tolist()):
        sums_K = target_WKL[window, :rows].sum(-1)
        torch.testing.assert_close(sums_K, torch.ones(rows), atol=1e-6, rtol=0)
        scaled_KL = rows * plan_WKL[window, :rows]
        torch.testing.assert_close(
            target_WKL[window, :rows], scaled_KL, atol=1e-4, rtol=0
        )
        assert target_WKL[window, rows:].eq(0).all()


def test_rows_of_any_mass_sum_to_one_and_padding_is_dropped():
    # The first row is light, the last one is padding.
    plan_WKL = torch.tensor([[[0.2, 0.29], [0.5, 0.0], [0.1, 0.1]]])
    target_WKL = soft_targets(plan_WKL, torch.tensor([2]))
    torch.testing.assert_close(target_WKL[0].sum(-1), torch.tensor([1.0, 1.0, 0.0]))


def test_an_exact_plan_gives_one_hot_targets(window_costs, full):
    target_WKK = soft_targets(
        exact(full(window_costs(2, k=8))).plan_WKL, torch.tensor([8, 8])
    )
    assert target_WKK.amax(2).eq(1).all()
    assert target_WKK.sum((1, 2)).eq(8).all()


def test_a_row_without_mass_stays_zero():
    assert soft_targets(torch.zeros(1, 2, 2), torch.tensor([2])).eq(0).all()
