"""Entropic transport that prefers to keep the order of the tokens.

Axes: W windows, K rows (student), L columns (teacher).
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from topd_ray.transport.problem import TransportProblem
from topd_ray.transport.sinkhorn import COST_RANGE, sinkhorn
from topd_ray.transport.solution import TransportPlan


def ordered_sinkhorn(
    problem: TransportProblem, *, epsilon: float, sigma: float
) -> TransportPlan:
    """Return entropic plans whose kernel favours equal relative places.

    The kernel is exp(-C_kl / epsilon) * exp(-(k / n - l / m)^2 / (2 sigma^2)), with n
    rows and m columns in the window. It is the Gaussian prior of Su and Hua,
    "Order-preserving Wasserstein distance for sequence matching" (2017), without their
    second term. D_OT is <gamma, C> with the ground cost alone.

    Args:
        problem: W windows with ground costs in [0, COST_RANGE]; a non-finite cost
            spoils its own window only.
        epsilon: Entropic blur, in units of the ground cost.
        sigma: Width of the prior, as a share of the window; a large one changes
            nothing.

    Returns:
        The plans of `problem`, in at least fp32.

    Raises:
        ValueError: `sigma` is not positive, or `sinkhorn` refuses `epsilon` or a cost.
    """
    if not (sigma > 0 and epsilon > 0):
        raise ValueError(f"epsilon={epsilon}, sigma={sigma}; both must be positive")
    # A factor exp(-p) on the kernel is a cost of epsilon * p. Costs and epsilon shrink
    # alike, so the plan stays the same and the sum fits the solver's range.
    strength = epsilon / (2 * sigma**2)
    scale = COST_RANGE / (COST_RANGE + strength)
    cost_WKL = problem.cost_WKL + strength * _distance_of_places(problem) ** 2
    solved = sinkhorn(
        replace(problem, cost_WKL=scale * cost_WKL), epsilon=scale * epsilon
    )
    assert solved.potential_WK is not None, "sinkhorn returns potentials"
    readable_WKL, healthy_W = problem.readable()
    d_ot_W = (solved.plan_WKL * readable_WKL).sum((1, 2))
    return replace(
        solved,
        problem=problem,
        cost_W=d_ot_W.masked_fill(~healthy_W, torch.nan),
        potential_WK=solved.potential_WK / scale,
    )


def _distance_of_places(problem: TransportProblem) -> Float[Tensor, "W K L"]:
    """Return k / n - l / m for every row and column; meaningless in the padding."""
    _, num_rows, num_cols = problem.cost_WKL.shape
    device = problem.cost_WKL.device
    row_K = torch.arange(num_rows, device=device, dtype=problem.dtype)
    col_L = torch.arange(num_cols, device=device, dtype=problem.dtype)
    row_WK = row_K / problem.num_rows_W.to(device)[:, None]
    col_WL = col_L / problem.num_cols_W.to(device)[:, None]
    return row_WK[:, :, None] - col_WL[:, None, :]
