"""Entropic transport of a batch of strangers, by size and epsilon in the way that is fastest.

One solver with two starts. Where epsilon is at least `SCALING_EPSILON` the kernel exp(-cost /
epsilon) is representable once row and column minima are taken off the cost, and `fit_scalings`
starts from there; GeomLoss has no part in it. Below, the kernel would vanish: GeomLoss anneals
potentials in the log domain, they are absorbed into the kernel, and `fit_scalings` ends in float64
what its iterations would take thousands to end.
Axes: W windows, K rows (student), L columns (teacher).
"""

import math
from collections.abc import Iterator

import torch
from geomloss import ot
from torch import Tensor

from topd_ray.transport.problem import TransportProblem
from topd_ray.transport.scaling import fit_scalings
from topd_ray.transport.solution import TransportPlan, marginal_error, round_to_marginals

COST_RANGE = 2.0
"""Largest ground cost (1 - cos reaches 2). GeomLoss anneals from the spread of the costs of the
whole batch; pinning that to a constant is what keeps one window's plan independent of another's.
"""

SINGLE_PRECISION_EPSILON = 0.03
"""From here on fp32 problems are solved in fp32, below in float64. At 0.025 fp32 still solved 1600
ragged windows of all kinds; at 0.02 it left 2 % of those with identical tokens."""

LOG_DOMAIN_EPSILON = 0.005
"""Below, the kernel would vanish in float64 as well, and GeomLoss provides the start."""

DEFAULT_MAX_ITER = 64

CONVERGED_MARGINAL = 5e-3
"""A plan has converged when no marginal is off by more than this fraction of a token's weight."""

# Where the way to a small epsilon starts, in halvings.
_FIRST_EPSILON = 0.08
# GeomLoss's share where it starts: an iteration costs ten times an update of the scalings.
_ANNEALED_SHARE = 8
_CHUNK_ELEMENTS = 2**18


def sinkhorn(
    problem: TransportProblem, *, epsilon: float = 0.05, max_iter: int = DEFAULT_MAX_ITER
) -> TransportPlan:
    """Entropic optimal transport plans (decision D6), each independent of its batch and padding.

    `epsilon` is in units of the ground cost, which must lie in [0, COST_RANGE]. `max_iter` bounds
    updates and Newton steps together (below LOG_DOMAIN_EPSILON an eighth of it goes to GeomLoss);
    a window stops as soon as it is done. One that did not converge is no error: `converged_W` says
    so. Raises ValueError for a bad epsilon or max_iter and for a finite cost out of range.
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
    plan_WKL, bound_W = torch.zeros_like(cost_WKL), cost_WKL.new_empty(len(cost_WKL))
    error_W, cost_W = torch.empty_like(bound_W), torch.empty_like(bound_W)
    wide = torch.float64 if epsilon < SINGLE_PRECISION_EPSILON else cost_WKL.dtype
    for part_W, rows, cols in _alike(problem):
        part_WKL, a_WK, b_WL = (
            cost_WKL[part_W, :rows, :cols],
            row_WK[part_W, :rows],
            col_WL[part_W, :cols],
        )
        raw_WKL, bound = _solve_chunk(
            part_WKL.to(wide), a_WK.to(wide), b_WL.to(wide), epsilon, max_iter
        )
        raw_WKL = raw_WKL.to(cost_WKL.dtype)
        rounded_WKL = round_to_marginals(raw_WKL, a_WK, b_WL)
        plan_WKL[part_W, :rows, :cols] = rounded_WKL
        error_W[part_W] = marginal_error(raw_WKL, a_WK, b_WL)
        cost_W[part_W] = (rounded_WKL * part_WKL).sum((1, 2))
        bound_W[part_W] = bound.to(bound_W)
    longest_W = torch.maximum(problem.num_rows_W, problem.num_cols_W).to(error_W)
    return TransportPlan(
        plan_WKL=plan_WKL.masked_fill_(~healthy_W[:, None, None], 0.0),
        cost_W=_or_nan(cost_W, healthy_W),
        dual_bound_W=_or_nan(bound_W, healthy_W),
        marginal_error_W=_or_nan(error_W, healthy_W),
        converged_W=healthy_W & (error_W * longest_W <= CONVERGED_MARGINAL),
    )


def _alike(problem: TransportProblem) -> Iterator[tuple[Tensor, int, int]]:
    """Windows of similar size together, with the size that fits them: less padding to compute on.

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


def _solve_chunk(
    cost_WKL: Tensor, row_WK: Tensor, col_WL: Tensor, epsilon: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """Plans before rounding, with the lower bound on the exact cost that their potentials give."""
    open_WKL = cost_WKL + _closed(row_WK)[:, :, None]
    open_WKL.add_(_closed(col_WL)[:, None, :])
    if epsilon >= LOG_DOMAIN_EPSILON:
        start_WK = open_WKL.amin(2).masked_fill(row_WK == 0, 0.0)
        num_halvings = max(0, math.ceil(math.log2(_FIRST_EPSILON / epsilon)))
    else:
        num_annealed = math.ceil(max_iter / _ANNEALED_SHARE)
        start_WK = _annealed_potential(cost_WKL, row_WK, col_WL, epsilon, num_annealed)
        num_halvings, max_iter = 0, max_iter - num_annealed
    # Off go the start and its c-transform: the kernel is at most 1, and 1 in each column.
    slack_WKL = open_WKL - start_WK[:, :, None]
    other_WL = slack_WKL.amin(1).masked_fill(col_WL == 0, 0.0)
    kernel_WKL = slack_WKL.sub_(other_WL[:, None, :]).div_(-epsilon).exp_()
    u_WK, v_WL = fit_scalings(
        kernel_WKL, row_WK, col_WL, num_halvings=num_halvings, max_iter=max_iter
    )
    plan_WKL = kernel_WKL.mul_(u_WK[:, :, None]).mul_(v_WL[:, None, :])
    return plan_WKL, _dual_bound(open_WKL, start_WK + epsilon * u_WK.log(), row_WK, col_WL)


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


def _dual_bound(open_WKL: Tensor, potential_WK: Tensor, row_WK: Tensor, col_WL: Tensor) -> Tensor:
    """<f, a> + <c-transform of f, b>: whatever f is, no plan costs less."""
    transform_WL = (open_WKL - potential_WK[:, :, None]).amin(1).masked_fill(col_WL == 0, 0.0)
    return (potential_WK * row_WK).sum(1) + (transform_WL * col_WL).sum(1)


def _closed(weight_WN: Tensor) -> Tensor:
    """What bars mass from padding when added to its cost."""
    return torch.zeros_like(weight_WN).masked_fill_(weight_WN == 0, math.inf)


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
