"""Weights and hidden states -> torch, layer by layer, and sums of two formats.

uint16 holds bfloat16's bits.
"""

import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

T = TypeVar("T")
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


def release_cached_memory() -> None:
    """Give memory of a GPU that PyTorch keeps for later back to the driver."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def whole_shape(weight: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a weight of which this rank may hold a share alone."""
    # DeepSpeed's own attribute; the tensor itself is empty then.
    return tuple(getattr(weight, "ds_shape", weight.shape))


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


def by_layer(
    weights: Iterable[tuple[str, T]],
) -> Iterator[list[tuple[str, T]]]:
    """Yield the weights in their order, those of one layer at a time.

    A layer is gathered by one collective: for a weight at a time they are hundreds, of
    a few kilobytes each for the norms. The first number in a name is that of its layer;
    what has no number is gathered for itself.
    """
    layer: list[tuple[str, T]] = []
    for name, weight in weights:
        stem = _layer_of(name)
        if layer and (stem is None or stem != _layer_of(layer[0][0])):
            yield layer
            layer = []
        layer.append((name, weight))
    if layer:
        yield layer


def _layer_of(name: str) -> str | None:
    """Return e.g. `model.layers.3` of `model.layers.3.mlp.up_proj.weight`."""
    found = re.match(r"[^0-9]*?\.\d+(?=\.)", name)
    return found[0] if found else None


__all__ = [
    "add_blocks",
    "by_layer",
    "release_cached_memory",
    "to_torch",
    "view_as_torch",
    "whole_shape",
]
