"""A ragged batch of transport problems, padded to one shape.

Axes: W windows (one problem each), K rows (student), L columns (teacher).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TransportProblem:
    """W ground-cost matrices padded to (K, L); the true sizes say where each of them
    ends.

    Both marginals are uniform over the true entries: 1 / num_rows and 1 / num_cols.
    What the padding holds is never read. A non-finite cost is allowed and poisons its
    own window only; a wrong shape, dtype or size raises ValueError.
    """

    cost_WKL: Float[Tensor, "W K L"]
    num_rows_W: Int[Tensor, "W"]
    num_cols_W: Int[Tensor, "W"]

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
        """What the problem is solved in: the costs' own dtype, but never below fp32."""
        return torch.promote_types(self.cost_WKL.dtype, torch.float32)

    def marginals(self) -> tuple[Float[Tensor, "W K"], Float[Tensor, "W L"]]:
        """Row and column weights: uniform over the true entries, 0 in padding."""
        _, num_rows, num_cols = self.cost_WKL.shape
        device = self.cost_WKL.device
        return (
            _uniform(self.num_rows_W.to(device), num_rows, self.dtype),
            _uniform(self.num_cols_W.to(device), num_cols, self.dtype),
        )

    def readable(self) -> tuple[Float[Tensor, "W K L"], Bool[Tensor, "W"]]:
        """Costs safe to compute with, and which windows are healthy (all their costs
        finite).

        Padding and poisoned windows read 0 everywhere, so neither can reach another
        window.
        """
        row_WK, col_WL = self.marginals()
        inside_WKL = (row_WK > 0)[:, :, None] & (col_WL > 0)[:, None, :]
        cost_WKL = torch.where(inside_WKL, self.cost_WKL.to(self.dtype), 0.0)
        if cost_WKL.numel() == 0:
            return cost_WKL, torch.ones(
                len(cost_WKL), dtype=torch.bool, device=cost_WKL.device
            )
        # The largest size is nan or infinite where any cost is: a sixth of the time of
        # asking each.
        healthy_W = cost_WKL.abs().amax((1, 2)).isfinite()
        return cost_WKL.masked_fill_(~healthy_W[:, None, None], 0.0), healthy_W


def within(size_W: Int[Tensor, "W"], length: int) -> Bool[Tensor, "W N"]:
    """Which of `length` padded entries belong to each window."""
    return torch.arange(length, device=size_W.device) < size_W[:, None]


def _uniform(size_W: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    return within(size_W, length).to(dtype) / size_W[:, None]


def _check_sizes(name: str, size_W: Tensor, num_windows: int, longest: int) -> None:
    integral = not (
        size_W.is_floating_point() or size_W.is_complex() or size_W.dtype == torch.bool
    )
    if size_W.shape != (num_windows,) or not integral:
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
