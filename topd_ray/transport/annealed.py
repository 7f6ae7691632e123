"""Entropic plans by GeomLoss: anneal epsilon in the log domain, then relax.

Axes: W windows, K rows (student), L columns (teacher).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# A GeomLoss iteration costs five times an update on a kernel that is already there. It
# gets the few that bring the potentials close, which makes over-relaxation safe.
_ANNEALED_SHARE = 8
# The theory wants less than 2; 1.8 beat 1.7 and 1.9.
_RELAXATION = 1.8
# The last updates are plain: ending on an over-relaxed one leaves the marginals five
# times worse.
_PLAIN_UPDATES = 3


def annealed_plan(
    cost_WKL: Float[Tensor, "W K L"],
    row_WK: Float[Tensor, "W K"],
    col_WL: Float[Tensor, "W L"],
    *,
    epsilon: float,
    max_iter: int,
    cost_range: float,
) -> tuple[Float[Tensor, "W K L"], Float[Tensor, "W K"]]:
    """Return entropic plans before rounding, and the potentials of their rows.

    The plan is exp((f_k + g_l - C_kl) / epsilon) with the marginals a and b. An eighth
    of the iterations anneals epsilon with GeomLoss, the rest are over-relaxed Sinkhorn
    updates.

    Args:
        cost_WKL: Ground costs in [0, cost_range], finite.
        row_WK: Row weights a, 0 in the padding.
        col_WL: Column weights b, 0 in the padding.
        epsilon: Entropic blur, in units of the ground cost.
        max_iter: Number of GeomLoss iterations and updates together.
        cost_range: Largest cost that any batch may hold.

    Returns:
        Plans, and the potentials f in units of the ground cost. The potential of a row
        without weight means nothing.
    """
    num_annealed = math.ceil(max_iter / _ANNEALED_SHARE)
    potential_WK = _annealed_potential(
        cost_WKL, row_WK, col_WL, epsilon, num_annealed, cost_range
    )
    # The softmax makes columns exact and cannot overflow. No row starts empty: GeomLoss
    # ends on a c-transform, so each row is among the best of a column.
    score_WKL = (potential_WK[:, :, None] - cost_WKL) / epsilon
    score_WKL = score_WKL.masked_fill((row_WK == 0)[:, :, None], -math.inf)
    plan_WKL, moved_WK = _relaxed_updates(
        score_WKL.softmax(1) * col_WL[:, None, :],
        row_WK,
        col_WL,
        num_updates=max_iter - num_annealed,
    )
    return plan_WKL, potential_WK + epsilon * moved_WK


def _annealed_potential(
    cost_WKL: Tensor,
    row_WK: Tensor,
    col_WL: Tensor,
    epsilon: float,
    num_iter: int,
    cost_range: float,
) -> Tensor:
    """Return GeomLoss's potentials of the rows, each window independent of the others.

    GeomLoss starts to anneal at the spread of the costs of the whole batch. One
    additional row and column without weight holds `cost_range`, so that the spread is
    the same in every batch.
    """
    # Imported here, because every probe worker would wait for it at its start.
    from geomloss import ot

    anchored_WKL = torch.nn.functional.pad(cost_WKL, (0, 1, 0, 1))
    anchored_WKL[:, -1, -1] = cost_range
    # `tol` stays at its default None: GeomLoss refuses any other value.
    result = ot.solve_batch(
        anchored_WKL,
        reg=epsilon,
        a=torch.nn.functional.pad(row_WK, (0, 1)),
        b=torch.nn.functional.pad(col_WL, (0, 1)),
        max_iter=num_iter,
    )
    potential_WK: Tensor = result.potential_a[:, :-1]
    return potential_WK


def _relaxed_updates(
    plan_WKL: Tensor, row_WK: Tensor, col_WL: Tensor, *, num_updates: int
) -> tuple[Tensor, Tensor]:
    """Update the plan in place; return it, and how far f moved in units of epsilon.

    Rows and columns are updated in turn. Thibault, Chizat, Dossal and Papadakis,
    "Overrelaxed Sinkhorn-Knopp algorithm for regularized optimal transport" (2017).
    """
    moved_WK = torch.zeros_like(row_WK)
    log_row_WK = row_WK.log()
    log_col_WL = col_WL.log()
    for update in range(num_updates):
        relaxation = _RELAXATION if update < num_updates - _PLAIN_UPDATES else 1.0
        step_WK = relaxation * (log_row_WK - plan_WKL.sum(2).log()).nan_to_num(0.0)
        plan_WKL.mul_(step_WK.exp()[:, :, None])
        step_WL = relaxation * (log_col_WL - plan_WKL.sum(1).log()).nan_to_num(0.0)
        plan_WKL.mul_(step_WL.exp()[:, None, :])
        moved_WK += step_WK
    return plan_WKL, moved_WK


__all__ = ["annealed_plan"]
