"""Weights and hidden states as numpy arrays -> torch; uint16 holds bfloat16's bits."""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


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


__all__ = ["to_torch", "view_as_torch"]
