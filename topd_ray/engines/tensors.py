"""Weights as numpy arrays -> torch."""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """A copy (arrays from the object store are read-only); uint16 holds the bits of
    bfloat16.
    """
    return seen_as_torch(array.copy())


def seen_as_torch(array: NDArray[Any]) -> torch.Tensor:
    """The array's own memory, for whoever only reads it and soon lets go: it may be
    shared.
    """
    with (
        warnings.catch_warnings()
    ):  # torch warns that an array from the object store is read-only
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


__all__ = ["seen_as_torch", "to_torch"]
