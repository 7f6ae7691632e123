"""Exact optimal transport, one window after the other on the CPU.

A backend (`probe.solver: exact`), and the oracle of the tests. Axes: W windows, K rows
(student), L columns (teacher).
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
    """Return optimal plans without entropy: min over gamma of <gamma, C>.

    This is D_OT as the paper defines it (section 3, "Divergence Detection"). The
    targets are sharp, and D_OT equals its own lower bound. Windows of equal lengths are
    assignment problems for scipy; windows of unequal lengths need the network simplex
    of POT.

    Args:
        problem: W windows with costs of any range; a non-finite cost spoils its own
            window only.

    Returns:
        The plans on the device of the costs, in at least fp32.

    Raises:
        UserError: A window has unequal lengths and POT is not installed.
    """
    readable_WKL, healthy_W = problem.readable()
    cost_WKL = readable_WKL.detach()
    row_WK, col_WL = problem.marginals()
    plan_WKL = torch.zeros_like(cost_WKL)
    solved_W = healthy_W.clone()
    for window in healthy_W.nonzero().flatten().tolist():
        rows = int(problem.num_rows_W[window])
        cols = int(problem.num_cols_W[window])
        cost_KL = cost_WKL[window, :rows, :cols].double().cpu().numpy()
        plan_KL, solved = (
            _assignment(cost_KL) if rows == cols else _network_simplex(cost_KL)
        )
        plan_WKL[window, :rows, :cols] = torch.from_numpy(plan_KL).to(plan_WKL)
        solved_W[window] = solved
    error_W = marginal_error(plan_WKL, row_WK, col_WL)
    return TransportPlan(
        problem=problem,
        plan_WKL=plan_WKL,
        cost_W=(plan_WKL * cost_WKL).sum((1, 2)).masked_fill(~healthy_W, torch.nan),
        potential_WK=None,
        marginal_error_W=error_W.masked_fill(~healthy_W, torch.nan),
        converged_W=solved_W,
    )


def _assignment(cost_KL: Matrix) -> tuple[Matrix, bool]:
    """Return an optimal plan of a square window, and True.

    By Birkhoff's theorem some permutation is optimal when both marginals are uniform
    and of equal length.
    """
    plan_KL = np.zeros_like(cost_KL)
    plan_KL[linear_sum_assignment(cost_KL)] = 1.0 / len(cost_KL)
    return plan_KL, True


def _network_simplex(cost_KL: Matrix) -> tuple[Matrix, bool]:
    """Return an optimal plan of a window of any lengths, and whether POT solved it."""
    # Imported here, because it is slow to import and only unequal lengths need it.
    try:
        import ot
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
