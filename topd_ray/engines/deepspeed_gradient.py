"""Gradients in DeepSpeed's sharded optimizers: their norm, and the case of one rank.

Some of DeepSpeed's methods are replaced. Its norm converts each gradient to float64 as
a whole, twice the bytes of the largest weight; its search for values that are not
finite reads all gradients once more, although the norm shows them; and one rank copies
each gradient four times to reduce it with itself.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from topd_ray.engines.tensors import add_blocks

_BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Elements of a gradient that are in float64 at a time, by device.

On a CPU they stay in the cache; on a GPU so many that the start of a kernel is cheap.
"""


class GlobalNorm:
    """The norm of the gradient over all ranks, as a step of ZeRO 1 to 3 uses it."""

    def __init__(self, optimizer: Any, *, zero_stage: int) -> None:
        """Replace the norm of a DeepSpeed optimizer."""
        self._optimizer = optimizer
        self.drops = False
        """Whether the next step drops the gradient: DeepSpeed does where it is NaN."""
        if zero_stage == 3:
            optimizer._get_norm_groups = lambda: [self._norm()]
        else:
            optimizer.scaled_global_norm = self._norm
            optimizer.check_overflow = lambda **_: None

    def _norm(self) -> Tensor:
        if self.drops:
            return torch.tensor(math.nan)
        groups = self._optimizer.averaged_gradients.values()
        square = sum_of_squares(gradient for group in groups for gradient in group)
        dist.all_reduce(square)
        return square.float().sqrt()  # rounded in DeepSpeed's order


def sum_of_squares(gradients: Iterable[Tensor]) -> Tensor:
    """Return the sum of the squares of all elements, a float64 scalar.

    Args:
        gradients: At least one tensor, of any shapes, on one device.

    Returns:
        NaN or infinite where an element is.
    """
    squares = []
    for gradient in gradients:
        size = _BLOCK_ELEMENTS.get(gradient.device.type, _BLOCK_ELEMENTS["cuda"])
        for block in torch.split(gradient.detach().reshape(-1), size):
            norm = torch.linalg.vector_norm(block, dtype=torch.float64)
            squares.append(norm.square())
    return torch.stack(squares).sum()


def keep_to_one_rank(optimizer: Any) -> None:
    """Let ZeRO 2 of one rank add gradients to the accumulated ones, with no reduction.

    Only where the gradients are bfloat16 and accumulate in float32.
    """
    optimizer.average_tensor = optimizer._add_full_reduction_to_compact_grad_partition
    optimizer._add_to_grad_partition_buffer = add_blocks


__all__ = ["GlobalNorm", "keep_to_one_rank", "sum_of_squares"]
