"""Entropic transport of a batch of strangers.

Axes: W windows, K rows (student), L columns (teacher).

Two ways to the same plan. In the scaling domain epsilon is halved down to its value, a
few over-relaxed updates at each, and Newton's method ends it (`scaling.py`): the
default. GeomLoss anneals epsilon in the log domain (`annealed.py`): some fifteen times
slower, plans right to 3e-5 instead of rounding, and nothing in common with the first,
so that either can be held against the other. As it comes, without updates behind it,
GeomLoss leaves marginals off by 6e-4 after 4096 iterations (ragged windows, epsilon
0.05).
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from topd_ray.transport.annealed import annealed_plan
from topd_ray.transport.problem import TransportProblem
from topd_ray.transport.scaling import fit_plan
from topd_ray.transport.solution import (
    TransportPlan,
    marginal_error,
    round_to_marginals,
)

COST_RANGE = 2.0
"""Largest ground cost (1 - cos reaches 2): what the kernel at `_FIRST_EPSILON` is sure
to hold.
"""

SINGLE_PRECISION_EPSILON = 0.03
"""From here on fp32 problems are solved in fp32, below in float64. At 0.02 fp32 still
solves all windows of tokens, but leaves up to 6 % of those whose costs are all 0 or
2.
"""

DEFAULT_MAX_ITER = 64
"""20 updates, and far more Newton steps than any window of tokens has needed (7 at
epsilon 0.05). D_OT is then within 2e-6 of its float64 limit and every marginal within
1e-6 before rounding.
"""

CONVERGED_MARGINAL = 5e-3
"""A plan has converged when no marginal is off by more than this fraction of a token's
weight.
"""

# Halving starts between this and twice this. COST_RANGE / 0.08 is 25 nats, far from
# underflow.
_FIRST_EPSILON = 0.08
# 1 MiB a temporary in fp32, about 100 windows of 50 x 50: a few of them fit a core's
# cache.
_CHUNK_ELEMENTS = 2**18


Way = Literal["scaling", "geomloss"]


def sinkhorn(
    problem: TransportProblem,
    *,
    epsilon: float = 0.05,
    max_iter: int = DEFAULT_MAX_ITER,
    way: Way = "scaling",
) -> TransportPlan:
    """Entropic optimal transport plans (decision D6), each independent of its batch and
    padding.

    `epsilon` is in units of the ground cost, which must lie in [0, COST_RANGE].
    `max_iter` bounds updates and Newton steps at that epsilon together; a window stops
    as soon as it is done. Batch and padding change a plan by rounding only (1e-5 of a
    token's weight). A window that did not converge is no error: `converged_W` says so.
    Raises ValueError for a bad epsilon or max_iter and for a finite cost out of range.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon={epsilon}; it must be positive and finite")
    if max_iter < 1:
        raise ValueError(f"max_iter={max_iter}; it must be at least 1")
    solve_part = _in_scaling_domain if way == "scaling" else _by_geomloss
    with (
        torch.no_grad()
    ):  # GeomLoss leaves autograd switched off for good when it raises
        return _solve(problem, epsilon, max_iter, solve_part)


_SolvePart = Callable[[Tensor, Tensor, Tensor, float, int], tuple[Tensor, Tensor]]


def _solve(
    problem: TransportProblem, epsilon: float, max_iter: int, solve_part: _SolvePart
) -> TransportPlan:
    cost_WKL, healthy_W = problem.readable()
    _check_range(cost_WKL)
    row_WK, col_WL = problem.marginals()
    plan_WKL, bound_W = torch.zeros_like(cost_WKL), cost_WKL.new_empty(len(cost_WKL))
    error_W, cost_W = torch.empty_like(bound_W), torch.empty_like(bound_W)
    for part_W, rows, cols in _alike(problem):
        part_WKL = cost_WKL[part_W, :rows, :cols]
        a_WK, b_WL = row_WK[part_W, :rows], col_WL[part_W, :cols]
        raw_WKL, bound_W[part_W] = solve_part(part_WKL, a_WK, b_WL, epsilon, max_iter)
        rounded_WKL = round_to_marginals(raw_WKL, a_WK, b_WL)
        plan_WKL[part_W, :rows, :cols] = rounded_WKL
        error_W[part_W] = marginal_error(raw_WKL, a_WK, b_WL)
        cost_W[part_W] = (rounded_WKL * part_WKL).sum((1, 2))
    longest_W = torch.maximum(problem.num_rows_W, problem.num_cols_W).to(error_W)
    return TransportPlan(
        plan_WKL=plan_WKL.masked_fill_(~healthy_W[:, None, None], 0.0),
        cost_W=_or_nan(cost_W, healthy_W),
        dual_bound_W=_or_nan(bound_W, healthy_W),
        marginal_error_W=_or_nan(error_W, healthy_W),
        converged_W=healthy_W & (error_W * longest_W <= CONVERGED_MARGINAL),
    )


def _alike(problem: TransportProblem) -> Iterator[tuple[Tensor, int, int]]:
    """Windows of similar size together, with the size that fits them: less padding to
    compute on.

    What a window is padded with changes its plan by rounding only.
    """
    num_windows, num_rows, num_cols = problem.cost_WKL.shape
    device = problem.cost_WKL.device
    sizes_2W = torch.stack([problem.num_rows_W, problem.num_cols_W]).to(device)
    order_W = sizes_2W.amax(0).argsort(stable=True)
    chunk = max(1, _CHUNK_ELEMENTS // max(1, num_rows * num_cols))
    for start in range(0, num_windows, chunk):
        part_W = order_W[start : start + chunk]
        rows, cols = sizes_2W[:, part_W].amax(1).tolist()
        yield part_W, rows, cols


def _in_scaling_domain(
    cost_WKL: Tensor, row_WK: Tensor, col_WL: Tensor, epsilon: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """Plans before rounding, with the lower bound on the exact cost that their
    potentials give.
    """
    given = cost_WKL.dtype
    if epsilon < SINGLE_PRECISION_EPSILON:
        cost_WKL, row_WK, col_WL = cost_WKL.double(), _widened(row_WK), _widened(col_WL)
    open_WKL = cost_WKL + _closed(row_WK)[:, :, None]
    open_WKL.add_(_closed(col_WL)[:, None, :])
    start_WK = open_WKL.amin(2).masked_fill(row_WK == 0, 0.0)
    num_halvings = max(0, math.ceil(math.log2(_FIRST_EPSILON / epsilon)))
    # Off go the row minima and then the column minima: the kernel is at most 1, and 1
    # somewhere in every row and column.
    slack_WKL = open_WKL - start_WK[:, :, None]
    other_WL = slack_WKL.amin(1).masked_fill(col_WL == 0, 0.0)
    slack_WKL.sub_(other_WL[:, None, :])
    kernel_WKL = slack_WKL.div_(-epsilon * 2**num_halvings).exp_()
    plan_WKL, log_WK = fit_plan(
        kernel_WKL, row_WK, col_WL, num_halvings=num_halvings, max_iter=max_iter
    )
    bound_W = _dual_bound(open_WKL, start_WK + epsilon * log_WK, row_WK, col_WL)
    return plan_WKL.to(given), bound_W.to(given)


def _by_geomloss(
    cost_WKL: Tensor, row_WK: Tensor, col_WL: Tensor, epsilon: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """The same by `annealed_plan`."""
    plan_WKL, potential_WK = annealed_plan(
        cost_WKL,
        row_WK,
        col_WL,
        epsilon=epsilon,
        max_iter=max_iter,
        cost_range=COST_RANGE,
    )
    open_WKL = cost_WKL + _closed(row_WK)[:, :, None] + _closed(col_WL)[:, None, :]
    return plan_WKL, _dual_bound(open_WKL, potential_WK, row_WK, col_WL)


def _dual_bound(
    open_WKL: Tensor, potential_WK: Tensor, row_WK: Tensor, col_WL: Tensor
) -> Tensor:
    """<f, a> + <c-transform of f, b>: whatever f is, no plan costs less."""
    transform_WL = (
        (open_WKL - potential_WK[:, :, None]).amin(1).masked_fill(col_WL == 0, 0.0)
    )
    return (potential_WK * row_WK).sum(1) + (transform_WL * col_WL).sum(1)


def _widened(weight_WN: Tensor) -> Tensor:
    """Marginals right to float64: both sides have to weigh the same."""
    wide_WN = weight_WN.double()
    return wide_WN / wide_WN.sum(1, keepdim=True)


def _closed(weight_WN: Tensor) -> Tensor:
    """What bars mass from padding when added to its cost."""
    return torch.zeros_like(weight_WN).masked_fill_(weight_WN == 0, math.inf)


def _check_range(cost_WKL: Tensor) -> None:
    if cost_WKL.numel() == 0:
        return
    lowest, highest = (float(value) for value in cost_WKL.aminmax())
    if lowest < 0 or highest > COST_RANGE:
        raise ValueError(
            f"costs span [{lowest:g}, {highest:g}], outside [0, {COST_RANGE:g}]; shift"
            " them or scale them and epsilon alike"
        )


def _or_nan(value_W: Tensor, healthy_W: Tensor) -> Tensor:
    return value_W.masked_fill(~healthy_W, math.nan)
