"""What a transport solver returns, and how any plan is made feasible.

Axes: W windows, K rows (student), L columns (teacher).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TransportPlan:
    """W feasible plans with their cost, and how the solver had ended; look at
    `converged_W`.

    Plans are >= 0, rows sum to 1 / num_rows and columns to 1 / num_cols within 1e-6,
    padding is 0. A poisoned window (non-finite cost) has an all-zero plan, nan
    elsewhere, converged False. Nothing here carries a gradient.
    """

    plan_WKL: Float[Tensor, "W K L"]
    cost_W: Float[Tensor, "W"]
    """D_OT = <plan, cost>, in units of the ground cost: never below the exact
    optimum.
    """
    dual_bound_W: Float[Tensor, "W"]
    """A certified lower bound on the exact optimum (c-transform of the solver's
    potentials).
    """
    marginal_error_W: Float[Tensor, "W"]
    """Largest absolute violation of a marginal **before** rounding."""
    converged_W: Bool[Tensor, "W"]


def round_to_marginals(
    plan_WKL: Float[Tensor, "W K L"],
    row_WK: Float[Tensor, "W K"],
    col_WL: Float[Tensor, "W L"],
) -> Float[Tensor, "W K L"]:
    """The nearby plan that meets both marginals: shrink what is too heavy, spread what
    is missing.

    Moves at most twice the L1 marginal error of mass. Altschuler, Weed and Rigollet,
    "Near-linear time approximation algorithms for optimal transport" (2017), algorithm
    2.
    """
    tiny = torch.finfo(plan_WKL.dtype).tiny
    row_sum_WK = plan_WKL.sum(2).clamp_min(tiny)
    shrunk_WKL = plan_WKL * (row_WK / row_sum_WK).clamp_max(1.0)[:, :, None]
    col_sum_WL = shrunk_WKL.sum(1).clamp_min(tiny)
    shrunk_WKL = shrunk_WKL * (col_WL / col_sum_WL).clamp_max(1.0)[:, None, :]
    # Clamped: in fp32 a full row can come out heavier than its marginal by one
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
    """Largest absolute violation of either marginal, by window."""
    row_error_W = (plan_WKL.sum(2) - row_WK).abs().amax(1)
    col_error_W = (plan_WKL.sum(1) - col_WL).abs().amax(1)
    return torch.maximum(row_error_W, col_error_W)
