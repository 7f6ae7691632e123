"""Kernel and marginals -> the plan that scaling the kernel fits to them, for many
windows at once.

The plan is diag(u) kernel diag(v); u and v are what is iterated, so an update reads the
kernel once a side and writes nothing of its size. Axes: W windows, K rows (student), L
columns (teacher).
"""

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NUM_RELAXED = 20
"""Over-relaxed updates before Newton's method takes over. At epsilon 0.05 they bring 50
x 50 windows to where two to four steps, each as dear as 20 updates, end at rounding.
Without Newton, a window with a third of its tokens substituted loses 0.05 % of its
slowest error an update.
"""

# Each halving of epsilon on the way there.
_NUM_ANNEALED = 10
# The theory wants less than 2; 1.8 beat 1.7 and 1.9. The first updates start far away,
# and ending on a relaxed one leaves the marginals five times worse: those are plain.
_RELAXATION = 1.8
_PLAIN_FIRST, _PLAIN_LAST = 3, 2
# No logarithm of v moves further in a Newton step: the quadratic model is no guide
# beyond. With 8, one window in a hundred does not converge.
_LONGEST_STEP = 3.0
# Three quarters of the digits (fp32: 6e-6 of a token's weight); a sum of 50 loses up to
# 20 roundings.
_TOLERANCE_POWER = 0.75
# Added to the Hessian's diagonal, relative to it. Tokens that hardly exchange mass with
# the rest make it singular in floating point; the mass in question is below its
# resolution just as well.
_DAMPING_ROUNDINGS = 10


def fit_plan(
    kernel_WKL: Float[Tensor, "W K L"],
    row_WK: Float[Tensor, "W K"],
    col_WL: Float[Tensor, "W L"],
    *,
    num_halvings: int,
    max_iter: int,
) -> tuple[Float[Tensor, "W K L"], Float[Tensor, "W K"]]:
    """The plan diag(u) kernel ** (2 ** num_halvings) diag(v) with these marginals, and
    log u.

    Rows come out exact, columns nearly. The kernel lies in [0, 1], is 0 in padding and
    belongs to epsilon * 2 ** num_halvings: squaring a plan halves epsilon, keeps what
    its scalings have learnt and, unlike a kernel, never vanishes where there is mass.
    Then come at most `max_iter` updates and Newton steps; a window leaves the batch
    once its columns are right to rounding.
    """
    log_WK = torch.zeros_like(row_WK)
    for _ in range(num_halvings):
        fit = _Fit.start(kernel_WKL, row_WK, col_WL)
        fit.relax(_NUM_ANNEALED)
        kernel_WKL = fit.plan().square_()
        log_WK = 2 * (log_WK + fit.u_WK.log())
    fit = _Fit.start(kernel_WKL, row_WK, col_WL)
    fit.relax(min(max_iter, NUM_RELAXED))
    fit.v_WL = _newton(fit, max_iter - NUM_RELAXED)
    fit.update_rows()
    return fit.plan(), log_WK + fit.u_WK.log()


def _newton(fit: "_Fit", max_steps: int) -> Tensor:
    """v, once each window has converged or had its steps; those that are done are not
    touched.
    """
    fitted_WL = fit.v_WL.clone()
    open_W = torch.arange(len(fitted_WL), device=fitted_WL.device)
    for _ in range(max_steps):
        fit.update_rows()
        still_W = ~fit.converged()
        if not bool(still_W.all()):
            fit, open_W = fit.only(still_W), open_W[still_W]
        if len(open_W) == 0:
            break
        fit.newton_step()
        fitted_WL[open_W] = fit.v_WL
    return fitted_WL


@dataclass(slots=True)
class _Fit:
    """Windows being fitted. Padding has scalings of 1, marginals of 1 and no kernel."""

    kernel_WKL: Tensor
    kernel_WLK: Tensor
    """The same, transposed: a row vector times a contiguous matrix is eight times
    faster on the CPU than a matrix times a column.
    """
    row_WK: Tensor
    col_WL: Tensor
    no_row_WK: Tensor
    """1 in padding."""
    no_col_WL: Tensor
    u_WK: Tensor
    v_WL: Tensor

    @classmethod
    def start(cls, kernel_WKL: Tensor, row_WK: Tensor, col_WL: Tensor) -> Self:
        """A fit of which nothing is known yet."""
        no_row_WK, no_col_WL = (row_WK == 0).to(row_WK), (col_WL == 0).to(col_WL)
        return cls(
            kernel_WKL=kernel_WKL,
            kernel_WLK=kernel_WKL.transpose(1, 2).contiguous(),
            row_WK=row_WK + no_row_WK,
            col_WL=col_WL + no_col_WL,
            no_row_WK=no_row_WK,
            no_col_WL=no_col_WL,
            u_WK=torch.ones_like(row_WK),
            v_WL=torch.ones_like(col_WL),
        )

    def only(self, keep_W: Bool[Tensor, "W"]) -> "_Fit":
        """The same fit with fewer windows."""
        return _Fit(*(getattr(self, each.name)[keep_W] for each in fields(self)))

    def plan(self) -> Tensor:
        """What kernel and scalings make."""
        return (self.u_WK[:, :, None] * self.kernel_WKL).mul_(self.v_WL[:, None, :])

    def relax(self, num_updates: int) -> None:
        """Alternating updates; Thibault, Chizat, Dossal and Papadakis (2017) over-relax
        them.
        """
        for update in range(num_updates):
            plain = update < _PLAIN_FIRST or update >= num_updates - _PLAIN_LAST
            self.update_rows(1.0 if plain else _RELAXATION)
            self.update_cols(1.0 if plain else _RELAXATION)

    def update_rows(self, relaxation: float = 1.0) -> Tensor:
        """u, after a Sinkhorn update."""
        sum_WK = _weighted(self.v_WL, self.kernel_WLK, self.no_row_WK)
        self.u_WK = _updated(self.u_WK, self.row_WK / sum_WK, relaxation)
        return self.u_WK

    def update_cols(self, relaxation: float = 1.0) -> Tensor:
        """v, likewise."""
        sum_WL = _weighted(self.u_WK, self.kernel_WKL, self.no_col_WL)
        self.v_WL = _updated(self.v_WL, self.col_WL / sum_WL, relaxation)
        return self.v_WL

    def column_mass(self) -> Tensor:
        """What the columns weigh; 1 in padding."""
        return self.v_WL * _weighted(self.u_WK, self.kernel_WKL, self.no_col_WL)

    def converged(self) -> Bool[Tensor, "W"]:
        """Whose columns are right to rounding, as fractions of a token's weight."""
        error_W = (self.column_mass() / self.col_WL - 1).abs().amax(1)
        return error_W <= math.pow(torch.finfo(error_W.dtype).eps, _TOLERANCE_POWER)

    def newton_step(self) -> None:
        """Move log v to the maximum of a quadratic model of the dual, where u is the
        best for v.

        Brauer, Clason, Lorenz and Wirth, "A Sinkhorn-Newton method for entropic optimal
        transport" (2017), with u eliminated: the Hessian is diag(columns) - P^T diag(1
        / rows) P. Adding a constant to log v changes nothing, hence the outer product
        that pins it.
        """
        mass_WL, weight_WL = self.column_mass(), self.col_WL - self.no_col_WL
        half_WKL = self.plan().mul_(self.row_WK.rsqrt()[:, :, None])
        hessian_WLL = weight_WL[:, :, None] * weight_WL[:, None, :]
        hessian_WLL.baddbmm_(half_WKL.transpose(1, 2), half_WKL, alpha=-1)
        damping = 1 + _DAMPING_ROUNDINGS * torch.finfo(mass_WL.dtype).eps
        hessian_WLL.diagonal(dim1=1, dim2=2).add_(mass_WL, alpha=damping)
        factor_WLL, failed_W = torch.linalg.cholesky_ex(hessian_WLL)
        missing_WL = self.col_WL - mass_WL
        step_WL = torch.cholesky_solve(missing_WL[:, :, None], factor_WLL)[:, :, 0]
        # Not seen where rows are exact; a plain update then, and the window is not
        # lost.
        step_WL = torch.where(failed_W[:, None] > 0, missing_WL / mass_WL, step_WL)
        shrink_W1 = _LONGEST_STEP / step_WL.abs().amax(1, keepdim=True).clamp_min(
            _LONGEST_STEP
        )
        self.v_WL = _within_range(self.v_WL * (step_WL * shrink_W1).exp_())


def _updated(old_WN: Tensor, exact_WN: Tensor, relaxation: float) -> Tensor:
    if relaxation != 1.0:
        exact_WN = (exact_WN / old_WN).log_().mul_(relaxation).exp_().mul_(old_WN)
    return _within_range(exact_WN)


def _within_range(scaling_WN: Tensor) -> Tensor:
    largest = math.pow(torch.finfo(scaling_WN.dtype).max, 0.45)
    return scaling_WN.clamp(1 / largest, largest)


def _weighted(weight_WN: Tensor, matrix_WNM: Tensor, offset_WM: Tensor) -> Tensor:
    """offset + weight @ matrix, window by window."""
    return torch.baddbmm(offset_WM[:, None], weight_WN[:, None], matrix_WNM)[:, 0]
