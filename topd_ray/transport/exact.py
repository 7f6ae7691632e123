"""Exact transport, window by window on the CPU: a backend, and the oracle of the tests.

Axes: W windows, K rows (student), L columns (teacher).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from topd_ray.errors import UserError
from topd_ray.transport.problem import TransportProblem
from topd_ray.transport.solution import TransportPlan, marginal_error

Matrix = NDArray[np.float64]


def exact(problem: TransportProblem) -> TransportPlan:
    """Optimal plans without entropy: sharp targets, and D_OT equal to its own lower
    bound.

    Equal lengths are an assignment problem; unequal ones need POT's network simplex,
    and raise UserError where POT is not installed.
    """
    readable_WKL, healthy_W = problem.readable()
    cost_WKL = readable_WKL.detach()
    row_WK, col_WL = problem.marginals()
    plan_WKL, solved_W = torch.zeros_like(cost_WKL), healthy_W.clone()
    for window in healthy_W.nonzero().flatten().tolist():
        rows, cols = int(problem.num_rows_W[window]), int(problem.num_cols_W[window])
        cost_KL = cost_WKL[window, :rows, :cols].double().cpu().numpy()
        plan_KL, solved = (
            _assignment(cost_KL) if rows == cols else _network_simplex(cost_KL)
        )
        plan_WKL[window, :rows, :cols] = torch.from_numpy(plan_KL).to(plan_WKL)
        solved_W[window] = solved
    cost_W = (plan_WKL * cost_WKL).sum((1, 2)).masked_fill(~healthy_W, torch.nan)
    return TransportPlan(
        plan_WKL=plan_WKL,
        cost_W=cost_W,
        dual_bound_W=cost_W,
        marginal_error_W=marginal_error(plan_WKL, row_WK, col_WL).masked_fill(
            ~healthy_W, torch.nan
        ),
        converged_W=solved_W,
    )


def _assignment(cost_KL: Matrix) -> tuple[Matrix, bool]:
    """Birkhoff: with equal uniform marginals some permutation is optimal."""
    plan_KL = np.zeros_like(cost_KL)
    plan_KL[linear_sum_assignment(cost_KL)] = 1.0 / len(cost_KL)
    return plan_KL, True


def _network_simplex(cost_KL: Matrix) -> tuple[Matrix, bool]:
    try:
        import ot  # here, because it is slow to import and only ragged windows need it
    except ImportError as error:
        raise UserError(
            f"exact transport between {cost_KL.shape[0]} and {cost_KL.shape[1]} tokens"
            " needs the package POT; install it (`pip install POT`) or use the"
            " Sinkhorn solver"
        ) from error
    rows, cols = cost_KL.shape
    plan_KL, log = ot.emd(
        np.full(rows, 1 / rows), np.full(cols, 1 / cols), cost_KL, log=True
    )
    return plan_KL, log["warning"] is None
