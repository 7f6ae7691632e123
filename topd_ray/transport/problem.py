"""The input of the transport solvers: a ragged batch of problems, padded to one shape.

Axes: W windows (one problem each), K rows (student), L columns (teacher).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TransportProblem:
    """W ground-cost matrices padded to (K, L), with the true size of each.

    Both marginals are uniform over the true entries: a = 1 / num_rows for each row and
    b = 1 / num_cols for each column. The values in the padding are never read. A
    non-finite cost is allowed: its window comes out as not converged, and no other
    window is affected.

    Example: two windows, of 3 x 2 and of 2 x 4 tokens::

        TransportProblem(
            cost_WKL=torch.rand(2, 3, 4),
            num_rows_W=torch.tensor([3, 2]),
            num_cols_W=torch.tensor([2, 4]),
        )

    Raises:
        ValueError: A field has a wrong shape or dtype, or a size lies outside 1..K (or
            1..L).
    """

    cost_WKL: Float[Tensor, "W K L"]
    """Cost of a unit of mass moved from row k to column l; its unit is the caller's."""
    num_rows_W: Int[Tensor, "W"]
    """True number of rows of each window, 1..K."""
    num_cols_W: Int[Tensor, "W"]
    """True number of columns of each window, 1..L."""

    def __post_init__(self) -> None:
        if self.cost_WKL.ndim != 3 or not self.cost_WKL.is_floating_point():
            raise ValueError(
                f"cost_WKL is {_describe(self.cost_WKL)}; it must be floats of shape"
                " (W, K, L)"
            )
        num_windows, num_rows, num_cols = self.cost_WKL.shape
        _check_sizes("num_rows_W", self.num_rows_W, num_windows, num_rows)
        _check_sizes("num_cols_W", self.num_cols_W, num_windows, num_cols)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to solve in: that of the costs, but at least fp32."""
        return torch.promote_types(self.cost_WKL.dtype, torch.float32)

    def marginals(self) -> tuple[Float[Tensor, "W K"], Float[Tensor, "W L"]]:
        """Return the row weights (W, K) and the column weights (W, L).

        Both are uniform over the true entries, sum to 1 and are 0 in the padding.
        """
        _, num_rows, num_cols = self.cost_WKL.shape
        device = self.cost_WKL.device
        return (
            _uniform(self.num_rows_W.to(device), num_rows, self.dtype),
            _uniform(self.num_cols_W.to(device), num_cols, self.dtype),
        )

    def readable(self) -> tuple[Float[Tensor, "W K L"], Bool[Tensor, "W"]]:
        """Return costs that are safe to compute with, and which windows are healthy.

        A window is healthy when all its costs are finite. Padding and unhealthy windows
        are 0 everywhere, so a nan in either reaches no other window.
        """
        row_WK, col_WL = self.marginals()
        inside_WKL = (row_WK > 0)[:, :, None] & (col_WL > 0)[:, None, :]
        cost_WKL = torch.where(inside_WKL, self.cost_WKL.to(self.dtype), 0.0)
        # amax below refuses an axis of length 0, which an empty batch may have.
        if cost_WKL.numel() == 0:
            return cost_WKL, torch.ones(
                len(cost_WKL), dtype=torch.bool, device=cost_WKL.device
            )
        # The largest magnitude is nan or infinite when any cost is. This takes a sixth
        # of the time of a test of each cost.
        healthy_W = cost_WKL.abs().amax((1, 2)).isfinite()
        return cost_WKL.masked_fill_(~healthy_W[:, None, None], 0.0), healthy_W


def within(size_W: Int[Tensor, "W"], length: int) -> Bool[Tensor, "W N"]:
    """Return the mask of the true entries of each padded row.

    Args:
        size_W: True length of each row.
        length: Padded length N.

    Returns:
        True at the first `size_W[w]` of the N entries of row w.
    """
    return torch.arange(length, device=size_W.device) < size_W[:, None]


def widened(weight_WN: Float[Tensor, "W N"]) -> Float[Tensor, "W N"]:
    """Return marginals in float64, normalised again.

    1 / 50 in fp32 is off by more than float64 resolves. Without the normalisation rows
    and columns would weigh differently, and no plan could meet both.

    Args:
        weight_WN: Row or column weights of each window.

    Returns:
        The same weights, with sums of 1 to float64 rounding.
    """
    wide_WN = weight_WN.double()
    return wide_WN / wide_WN.sum(1, keepdim=True)


def _uniform(size_W: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    return within(size_W, length).to(dtype) / size_W[:, None]


def _check_sizes(name: str, size_W: Tensor, num_windows: int, longest: int) -> None:
    is_integral = not (
        size_W.is_floating_point() or size_W.is_complex() or size_W.dtype == torch.bool
    )
    if size_W.shape != (num_windows,) or not is_integral:
        raise ValueError(
            f"{name} is {_describe(size_W)}; it must be {num_windows} integers"
        )
    bad_W = (size_W < 1) | (size_W > longest)
    if bool(bad_W.any()):
        window = int(bad_W.nonzero()[0])
        raise ValueError(
            f"{name}[{window}]={int(size_W[window])}; it must lie in 1..{longest}"
        )


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
