"""Entropic optimal transport for a batch of independent problems (decision D6).

Axes: W windows, K rows (student), L columns (teacher).

Two ways lead to the same plan. They have no code in common, so that each can be checked
against the other:

- `scaling` (the default, `scaling.py`) halves epsilon down to its value, with a few
  over-relaxed updates at each, and ends with Newton's method.
- `geomloss` (`annealed.py`) lets GeomLoss anneal epsilon in the log domain. It is some
  fifteen times slower, and its plans are right to 3e-5 instead of rounding.

GeomLoss without the updates of `annealed.py` is no alternative: it leaves marginals off
by 6e-4 after 4096 iterations (ragged windows, epsilon 0.05).
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from topd_ray.transport.annealed import annealed_plan
from topd_ray.transport.problem import TransportProblem, widened
from topd_ray.transport.scaling import fit_plan
from topd_ray.transport.solution import (
    TransportPlan,
    marginal_error,
    round_to_marginals,
)

COST_RANGE = 2.0
"""Largest ground cost: 1 - cos reaches 2.

A kernel with costs up to this does not underflow at `_FIRST_EPSILON`.
"""

SINGLE_PRECISION_EPSILON = 0.03
"""Smallest epsilon at which fp32 problems are solved in fp32; below it, in float64.

At 0.02 fp32 still solves all windows of tokens, but leaves up to 6 % of those whose
costs are all 0 or 2.
"""

DEFAULT_MAX_ITER = 64
"""20 updates, and far more Newton steps than any window of tokens has needed.

Seven steps are the most seen at epsilon 0.05. D_OT is then within 2e-6 of its float64
limit and every marginal within 1e-6 before rounding.
"""

CONVERGED_MARGINAL = 5e-3
"""Largest marginal error of a converged plan, as a fraction of a token's weight."""

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
    """Return entropic optimal transport plans, rounded onto their marginals.

    gamma = argmin <gamma, C> + epsilon * KL(gamma || a b^T) over plans with the
    marginals a and b. The paper (section 3, "Divergence Detection") minimises <gamma,
    C> alone; the entropy is decision D6. D_OT is <gamma, C> without the entropy term,
    which would give identical windows a distance.

    Args:
        problem: W windows with ground costs in [0, COST_RANGE]; a non-finite cost
            spoils its own window only.
        epsilon: Entropic blur, in units of the ground cost. Smaller values give
            sharper plans.
        max_iter: Largest number of updates and Newton steps at this epsilon together.
            A window stops as soon as it has converged.
        way: The algorithm, see the module's docstring.

    Returns:
        The plans, in at least fp32. Batch and padding change a plan by rounding only
        (1e-5 of a token's weight). A window that did not converge is no error:
        `converged_W` is False there.

    Raises:
        ValueError: `epsilon` is not positive and finite, `max_iter` is below 1, or a
            finite cost lies outside [0, COST_RANGE].
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon={epsilon}; it must be positive and finite")
    if max_iter < 1:
        raise ValueError(f"max_iter={max_iter}; it must be at least 1")
    solve_part = _in_scaling_domain if way == "scaling" else _by_geomloss
    # no_grad also restores the grad mode when GeomLoss raises, which switches autograd
    # off for good.
    with torch.no_grad():
        return _solve(problem, epsilon, max_iter, solve_part)


_SolvePart = Callable[[Tensor, Tensor, Tensor, float, int], tuple[Tensor, Tensor]]


def _solve(
    problem: TransportProblem, epsilon: float, max_iter: int, solve_part: _SolvePart
) -> TransportPlan:
    cost_WKL, healthy_W = problem.readable()
    _check_range(cost_WKL)
    row_WK, col_WL = problem.marginals()
    plan_WKL = torch.zeros_like(cost_WKL)
    potential_WK = torch.zeros_like(row_WK, dtype=torch.float64)
    error_W = cost_WKL.new_empty(len(cost_WKL))
    cost_W = torch.empty_like(error_W)
    for part_W, rows, cols in _parts_of_like_size(problem):
        part_WKL = cost_WKL[part_W, :rows, :cols]
        a_WK = row_WK[part_W, :rows]
        b_WL = col_WL[part_W, :cols]
        raw_WKL, f_WK = solve_part(part_WKL, a_WK, b_WL, epsilon, max_iter)
        rounded_WKL = round_to_marginals(raw_WKL, a_WK, b_WL)
        plan_WKL[part_W, :rows, :cols] = rounded_WKL
        potential_WK[part_W, :rows] = f_WK.double()
        error_W[part_W] = marginal_error(raw_WKL, a_WK, b_WL)
        cost_W[part_W] = (rounded_WKL * part_WKL).sum((1, 2))
    longest_W = torch.maximum(problem.num_rows_W, problem.num_cols_W).to(error_W)
    return TransportPlan(
        problem=problem,
        plan_WKL=plan_WKL.masked_fill_(~healthy_W[:, None, None], 0.0),
        cost_W=_or_nan(cost_W, healthy_W),
        potential_WK=potential_WK,
        marginal_error_W=_or_nan(error_W, healthy_W),
        converged_W=healthy_W & (error_W * longest_W <= CONVERGED_MARGINAL),
    )


def _parts_of_like_size(problem: TransportProblem) -> Iterator[tuple[Tensor, int, int]]:
    """Yield indices of windows of like size, and the rows and columns that hold them.

    Windows are sorted by size so that a part has little padding to compute on. The
    padding of a window changes its plan by rounding only.
    """
    num_windows, num_rows, num_cols = problem.cost_WKL.shape
    device = problem.cost_WKL.device
    sizes_2W = torch.stack([problem.num_rows_W, problem.num_cols_W]).to(device)
    order_W = sizes_2W.amax(0).argsort(stable=True)
    part_size = max(1, _CHUNK_ELEMENTS // max(1, num_rows * num_cols))
    for start in range(0, num_windows, part_size):
        part_W = order_W[start : start + part_size]
        rows, cols = sizes_2W[:, part_W].amax(1).tolist()
        yield part_W, rows, cols


def _in_scaling_domain(
    cost_WKL: Tensor, row_WK: Tensor, col_WL: Tensor, epsilon: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """Return plans before rounding and the potentials of their rows, by `fit_plan`."""
    given = cost_WKL.dtype
    if epsilon < SINGLE_PRECISION_EPSILON:
        cost_WKL = cost_WKL.double()
        row_WK = widened(row_WK)
        col_WL = widened(col_WL)
    open_WKL = cost_WKL + _barrier(row_WK)[:, :, None]
    open_WKL.add_(_barrier(col_WL)[:, None, :])
    start_WK = open_WKL.amin(2).masked_fill(row_WK == 0, 0.0)
    num_halvings = max(0, math.ceil(math.log2(_FIRST_EPSILON / epsilon)))
    # The row minima and then the column minima are subtracted first. The kernel is
    # then at most 1, and 1 somewhere in every row and column, so none of them vanishes.
    slack_WKL = open_WKL - start_WK[:, :, None]
    other_WL = slack_WKL.amin(1).masked_fill(col_WL == 0, 0.0)
    slack_WKL.sub_(other_WL[:, None, :])
    kernel_WKL = slack_WKL.div_(-epsilon * 2**num_halvings).exp_()
    plan_WKL, log_WK = fit_plan(
        kernel_WKL, row_WK, col_WL, num_halvings=num_halvings, max_iter=max_iter
    )
    return plan_WKL.to(given), start_WK + epsilon * log_WK


def _by_geomloss(
    cost_WKL: Tensor, row_WK: Tensor, col_WL: Tensor, epsilon: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """Return plans before rounding and the potentials of their rows, by GeomLoss."""
    plan_WKL, potential_WK = annealed_plan(
        cost_WKL,
        row_WK,
        col_WL,
        epsilon=epsilon,
        max_iter=max_iter,
        cost_range=COST_RANGE,
    )
    return plan_WKL, potential_WK.masked_fill(row_WK == 0, 0.0)


def _barrier(weight_WN: Tensor) -> Tensor:
    """Return what to add to costs so that no mass goes to padding: infinity there."""
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
