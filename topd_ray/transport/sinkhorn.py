"""Entropic transport by GeomLoss, made safe for a batch of strangers.

Axes: W windows, K rows (student), L columns (teacher).
"""

import math

import torch
from geomloss import ot
from torch import Tensor

from topd_ray.transport.problem import TransportProblem
from topd_ray.transport.solution import TransportPlan, marginal_error, round_to_marginals

COST_RANGE = 2.0
"""Largest ground cost (1 - cos reaches 2). GeomLoss anneals from the spread of the costs of the
whole batch; pinning that to a constant is what keeps one window's plan independent of another's.
"""

DEFAULT_MAX_ITER = 64
"""Updates that leave a 50 x 50 window's D_OT within 2e-4 of its converged fp64 value at
epsilon 0.05, and every marginal within 3e-5 (0.15 % of a token's weight) before rounding: worst of
240 windows with 0-100 % of the tokens substituted. At 32 it is 9e-4 and 4e-4; 64 updates without
over-relaxation leave 3e-3 and 3e-3.
"""

CONVERGED_MARGINAL = 5e-3
"""A plan has converged when no marginal is off by more than this fraction of a token's weight."""

# A GeomLoss iteration costs five times an update on a kernel that is already there: it gets the
# few that bring the potentials close, which is what makes over-relaxation safe to start.
_ANNEALED_SHARE = 8
# The theory wants less than 2; 1.8 beat 1.7 and 1.9 on the windows above. The last updates are
# plain: ending on an over-relaxed one leaves the marginals five times worse.
_RELAXATION = 1.8
_PLAIN_UPDATES = 3
# 4 MiB a temporary in fp32 (about 400 windows of 50 x 50); larger chunks fall out of cache.
_CHUNK_ELEMENTS = 2**20


def sinkhorn(
    problem: TransportProblem, *, epsilon: float = 0.05, max_iter: int = DEFAULT_MAX_ITER
) -> TransportPlan:
    """Entropic optimal transport plans (decision D6), each independent of its batch and padding.

    `epsilon` is in units of the ground cost, which must lie in [0, COST_RANGE]. An eighth of
    `max_iter` goes to GeomLoss's annealing, the rest to over-relaxed updates; a smaller epsilon
    needs more. A window that did not converge is no error: `converged_W` says so. Raises
    ValueError for a bad epsilon or max_iter and for a finite cost out of range.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon={epsilon}; it must be positive and finite")
    if max_iter < 1:
        raise ValueError(f"max_iter={max_iter}; it must be at least 1")
    # no_grad, because GeomLoss leaves autograd switched off for good when it raises.
    with torch.no_grad():
        return _solve(problem, epsilon, max_iter)


def _solve(problem: TransportProblem, epsilon: float, max_iter: int) -> TransportPlan:
    cost_WKL, healthy_W = problem.readable()
    _check_range(cost_WKL)
    row_WK, col_WL = problem.marginals()
    num_windows, num_rows, num_cols = cost_WKL.shape
    plan_WKL, bound_W = torch.empty_like(cost_WKL), cost_WKL.new_empty(num_windows)
    error_W = torch.empty_like(bound_W)
    chunk = max(1, _CHUNK_ELEMENTS // max(1, num_rows * num_cols))
    for start in range(0, num_windows, chunk):
        part = slice(start, start + chunk)
        raw_WKL, bound_W[part] = _solve_chunk(
            cost_WKL[part], row_WK[part], col_WL[part], epsilon, max_iter
        )
        error_W[part] = marginal_error(raw_WKL, row_WK[part], col_WL[part])
        plan_WKL[part] = round_to_marginals(raw_WKL, row_WK[part], col_WL[part])
    longest_W = torch.maximum(problem.num_rows_W, problem.num_cols_W).to(error_W)
    return TransportPlan(
        plan_WKL=plan_WKL * healthy_W[:, None, None],
        cost_W=_or_nan((plan_WKL * cost_WKL).sum((1, 2)), healthy_W),
        dual_bound_W=_or_nan(bound_W, healthy_W),
        marginal_error_W=_or_nan(error_W, healthy_W),
        converged_W=healthy_W & (error_W * longest_W <= CONVERGED_MARGINAL),
    )


def _solve_chunk(
    cost_WKL: Tensor, row_WK: Tensor, col_WL: Tensor, epsilon: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """Plans before rounding, with the lower bound on the exact cost that their potentials give."""
    num_annealed = math.ceil(max_iter / _ANNEALED_SHARE)
    potential_WK = _annealed_potential(cost_WKL, row_WK, col_WL, epsilon, num_annealed)
    plan_WKL, correction_WK = _relaxed_updates(
        _column_softmax(cost_WKL, potential_WK, row_WK, col_WL, epsilon),
        row_WK,
        col_WL,
        num_updates=max_iter - num_annealed,
    )
    return plan_WKL, _dual_bound(cost_WKL, potential_WK + epsilon * correction_WK, row_WK, col_WL)


def _annealed_potential(
    cost_WKL: Tensor, row_WK: Tensor, col_WL: Tensor, epsilon: float, num_iter: int
) -> Tensor:
    """GeomLoss's student-side potential, with a weightless row and column that pin the range."""
    anchored_WKL = torch.nn.functional.pad(cost_WKL, (0, 1, 0, 1))
    anchored_WKL[:, -1, -1] = COST_RANGE
    result = ot.solve_batch(  # tol stays None: GeomLoss refuses any other value
        anchored_WKL,
        reg=epsilon,
        a=torch.nn.functional.pad(row_WK, (0, 1)),
        b=torch.nn.functional.pad(col_WL, (0, 1)),
        max_iter=num_iter,
    )
    potential_WK: Tensor = result.potential_a[:, :-1]
    return potential_WK


def _column_softmax(
    cost_WKL: Tensor, potential_WK: Tensor, row_WK: Tensor, col_WL: Tensor, epsilon: float
) -> Tensor:
    """The plan that a student-side potential implies, its columns exact; it cannot overflow.

    No row starts empty: GeomLoss ends on a c-transform, so each row is among the best of a column.
    """
    score_WKL = (potential_WK[:, :, None] - cost_WKL) / epsilon
    score_WKL = score_WKL.masked_fill((row_WK == 0)[:, :, None], -math.inf)
    return score_WKL.softmax(1) * col_WL[:, None, :]


def _relaxed_updates(
    plan_WKL: Tensor, row_WK: Tensor, col_WL: Tensor, *, num_updates: int
) -> tuple[Tensor, Tensor]:
    """Alternating over-relaxed Sinkhorn updates, in place, and how far (in epsilons) they moved f.

    Thibault, Chizat, Dossal and Papadakis, "Overrelaxed Sinkhorn-Knopp algorithm" (2017).
    """
    moved_WK = torch.zeros_like(row_WK)
    log_row_WK, log_col_WL = row_WK.log(), col_WL.log()
    for update in range(num_updates):
        relaxation = _RELAXATION if update < num_updates - _PLAIN_UPDATES else 1.0
        step_WK = relaxation * (log_row_WK - plan_WKL.sum(2).log()).nan_to_num(0.0)
        plan_WKL.mul_(step_WK.exp()[:, :, None])
        step_WL = relaxation * (log_col_WL - plan_WKL.sum(1).log()).nan_to_num(0.0)
        plan_WKL.mul_(step_WL.exp()[:, None, :])
        moved_WK += step_WK
    return plan_WKL, moved_WK


def _dual_bound(cost_WKL: Tensor, potential_WK: Tensor, row_WK: Tensor, col_WL: Tensor) -> Tensor:
    """<f, a> + <c-transform of f, b>: whatever f is, no plan costs less."""
    slack_WKL = (cost_WKL - potential_WK[:, :, None]).masked_fill(
        (row_WK == 0)[:, :, None], math.inf
    )
    return (potential_WK * row_WK).sum(1) + (slack_WKL.amin(1) * col_WL).sum(1)


def _check_range(cost_WKL: Tensor) -> None:
    if cost_WKL.numel() == 0:
        return
    lowest, highest = (float(value) for value in cost_WKL.aminmax())
    if lowest < 0 or highest > COST_RANGE:
        raise ValueError(
            f"costs span [{lowest:g}, {highest:g}], outside [0, {COST_RANGE:g}]; shift them or "
            "scale them and epsilon alike"
        )


def _or_nan(value_W: Tensor, healthy_W: Tensor) -> Tensor:
    return value_W.masked_fill(~healthy_W, math.nan)
