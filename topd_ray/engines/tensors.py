"""Weights and hidden states as numpy arrays -> torch, and sums of two number formats.

uint16 holds bfloat16's bits.
"""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK_ELEMENTS = 2**18
"""Elements that `add_blocks` converts at a time: they stay in a CPU's cache."""


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """Return a copy of the array: arrays from the object store are read-only."""
    return view_as_torch(array.copy())


def view_as_torch(array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor on the array's memory, which must only be read.

    The memory may be shared with other processes; do not keep the tensor.
    """
    # torch warns that an array from the object store is read-only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def add_blocks(total: torch.Tensor, part: torch.Tensor) -> None:
    """Add a tensor of one axis to one of another number format, in place.

    On a CPU torch converts the whole `part` first, into fresh memory, whose page faults
    cost more than the sum.
    """
    if total.device.type != "cpu" or total.dtype == part.dtype:
        total.add_(part)
        return
    pairs = zip(
        torch.split(total, _BLOCK_ELEMENTS),
        torch.split(part, _BLOCK_ELEMENTS),
        strict=True,
    )
    for block, other in pairs:
        block.add_(other)


__all__ = ["add_blocks", "to_torch", "view_as_torch"]
