"""The output of the transport solvers, and the rounding that makes a plan feasible.

Axes: W windows, K rows (student), L columns (teacher).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from topd_ray.transport.problem import TransportProblem, widened


@dataclass(frozen=True, slots=True, eq=False)
class TransportPlan:
    """W feasible plans with their costs, and how the solver ended.

    Check `converged_W` before you use a plan. Plans are >= 0; rows sum to 1 / num_rows
    and columns to 1 / num_cols within 1e-6; the padding is 0. A window with a
    non-finite cost has an all-zero plan, nan in every other float field, and is not
    converged. No field carries a gradient.
    """

    problem: TransportProblem
    """The problem that was solved."""
    plan_WKL: Float[Tensor, "W K L"]
    """gamma: the mass that goes from student token k to teacher token l."""
    cost_W: Float[Tensor, "W"]
    """D_OT = <gamma, C>, in units of the ground cost; never below the exact optimum."""
    potential_WK: Float[Tensor, "W K"] | None
    """The solver's dual potentials of the rows, float64; None for an exact solver."""
    marginal_error_W: Float[Tensor, "W"]
    """Largest absolute violation of a marginal **before** rounding.

    The solvers compute it in any case: it decides `converged_W`.
    """
    converged_W: Bool[Tensor, "W"]
    """Which windows the solver finished to its tolerance."""

    def dual_bound(self) -> Float[Tensor, "W"]:
        """Return a certified lower bound on the exact optimum of each window.

        The bound is <f, a> + <f^c, b> with the potentials f and their c-transform
        f^c_l = min_k (C_kl - f_k). By Kantorovich duality no plan costs less, for any
        f. An exact plan is its own bound; a window with a non-finite cost has nan.
        """
        # A method, not a field: it is one more pass over all costs, and a training run
        # has no use for it.
        if self.potential_WK is None or self.problem.cost_WKL.numel() == 0:
            return self.cost_W
        readable_WKL, _ = self.problem.readable()
        cost_WKL = readable_WKL.detach()
        row_WK, col_WL = (widened(weight) for weight in self.problem.marginals())
        slack_WKL = cost_WKL - self.potential_WK[:, :, None]
        slack_WKL.masked_fill_((row_WK == 0)[:, :, None], math.inf)
        bound_W = (self.potential_WK * row_WK).sum(1)
        bound_W += (slack_WKL.amin(1) * col_WL).sum(1)
        return bound_W.to(self.cost_W.dtype).masked_fill(self.cost_W.isnan(), math.nan)


def round_to_marginals(
    plan_WKL: Float[Tensor, "W K L"],
    row_WK: Float[Tensor, "W K"],
    col_WL: Float[Tensor, "W L"],
) -> Float[Tensor, "W K L"]:
    """Return a plan near the given one that meets both marginals.

    Shrinks rows and columns that are too heavy, then adds the missing mass as a
    rank-one matrix. Altschuler, Weed and Rigollet, "Near-linear time approximation
    algorithms for optimal transport via Sinkhorn iteration" (2017), algorithm 2.

    Args:
        plan_WKL: Plans >= 0 of any marginals.
        row_WK: Wanted row sums of each window, 0 in the padding.
        col_WL: Wanted column sums of each window, 0 in the padding.

    Returns:
        Plans with these marginals to rounding. They differ from the given ones by at
        most twice the L1 error of the marginals, in mass.
    """
    tiny = torch.finfo(plan_WKL.dtype).tiny
    row_sum_WK = plan_WKL.sum(2).clamp_min(tiny)
    shrunk_WKL = plan_WKL * (row_WK / row_sum_WK).clamp_max(1.0)[:, :, None]
    col_sum_WL = shrunk_WKL.sum(1).clamp_min(tiny)
    shrunk_WKL = shrunk_WKL * (col_WL / col_sum_WL).clamp_max(1.0)[:, None, :]
    # Clamped, because in fp32 a full row can come out heavier than its marginal by one
    # rounding.
    missing_row_WK = (row_WK - shrunk_WKL.sum(2)).clamp_min(0.0)
    missing_col_WL = (col_WL - shrunk_WKL.sum(1)).clamp_min(0.0)
    share_WK = missing_row_WK / missing_row_WK.sum(1, keepdim=True).clamp_min(tiny)
    return shrunk_WKL + share_WK[:, :, None] * missing_col_WL[:, None, :]


def marginal_error(
    plan_WKL: Float[Tensor, "W K L"],
    row_WK: Float[Tensor, "W K"],
    col_WL: Float[Tensor, "W L"],
) -> Float[Tensor, "W"]:
    """Return the largest absolute violation of either marginal, in mass.

    Args:
        plan_WKL: Plans >= 0.
        row_WK: Wanted row sums of each window.
        col_WL: Wanted column sums of each window.

    Returns:
        One number a window, 0 for a feasible plan.
    """
    row_error_W = (plan_WKL.sum(2) - row_WK).abs().amax(1)
    col_error_W = (plan_WKL.sum(1) - col_WL).abs().amax(1)
    return torch.maximum(row_error_W, col_error_W)
