"""Weights as numpy arrays -> torch."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """A copy (arrays from the object store are read-only); uint16 holds the bits of bfloat16."""
    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


__all__ = ["to_torch"]
