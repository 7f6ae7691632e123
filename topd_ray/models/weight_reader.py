"""A model without memory for its weights, and the weights one at a time from its files.

For students that no process can hold whole: a weight is read and sharded before the
next one is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from topd_ray.models.architecture import loaded_config, stored_names
from topd_ray.models.checkpoint_names import CheckpointNames
from topd_ray.models.headers import tensor_facts


def empty_causal_lm(folder: Path, *, dtype: torch.dtype, **options: Any) -> Any:
    """Return the transformers model of a folder with its weights on the meta device.

    Tables that the model computes, such as those of rotary embeddings, are there.

    Args:
        folder: Hugging Face folder with safetensors.
        dtype: Number format of the weights.
        options: Further arguments of `from_config`.

    Raises:
        UserError: The files lack a weight, or transformers knows no such model.
    """
    from transformers import AutoModelForCausalLM

    stored_names(folder)  # raises for a weight that the files lack
    with _weights_on_meta():
        return AutoModelForCausalLM.from_config(
            loaded_config(folder), dtype=dtype, trust_remote_code=False, **options
        )


@contextmanager
def _weights_on_meta() -> Iterator[None]:
    """Put the weights of every module that is made in the block on the meta device.

    `torch.device("meta")` would take the computed tables too, which no file holds.
    """
    modules: Any = nn.Module
    register = modules.register_parameter

    def registered(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        # A weight that is on meta stays the same object, so that a tied head stays one.
        if weight is not None and not weight.is_meta:
            weight = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
        register(module, name, weight)

    modules.register_parameter = registered
    try:
        yield
    finally:
        modules.register_parameter = register


def fill_with_zeros(model: nn.Module) -> None:
    """Give every weight of an empty model the value 0, in the memory of the largest.

    For checks of what a model computes with, which do not depend on its weights.
    """
    named = list(model.named_parameters())
    dtype = named[0][1].dtype
    zeros = torch.zeros(max(weight.numel() for _, weight in named), dtype=dtype)
    for name, weight in named:
        part = zeros[: weight.numel()].view(weight.shape).to(weight.dtype)
        replace_weight(model, name, nn.Parameter(part, requires_grad=False))


def replace_weight(model: nn.Module, name: str, weight: nn.Parameter) -> None:
    """Put a weight in the place of `name`, and of all names that are tied to it."""
    old = model.get_parameter(name)
    for module in model.modules():
        for own, held in module._parameters.items():
            if held is old:
                module._parameters[own] = weight


class WeightReader:
    """Reads the weights of a model from the files of its folder."""

    def __init__(self, folder: Path, model: Any) -> None:
        """`model`: the transformers model of the folder; it may be empty."""
        self._files = {name: fact.file for name, fact in tensor_facts(folder).items()}
        self._stored = stored_names(folder)
        self._tied = dict(model.all_tied_weights_keys)
        self._names = CheckpointNames(model)

    def read(self, name: str, weight: Tensor) -> Tensor:
        """Return one weight of the model, whole, on the CPU.

        Args:
            name: Its name in the model.
            weight: A tensor of its shape and dtype, on any device.
        """
        stored = self._stored_name(name)
        if stored is not None:
            return self._tensor(stored).to(weight.dtype, copy=True)
        # transformers joins the experts of a layer in one weight.
        whole = torch.empty(weight.shape, dtype=weight.dtype)
        numbers = whole.view(-1)
        for part, places in self._names.places(name, weight):
            numbers[places.view(-1)] = self._tensor(part).reshape(-1).to(weight.dtype)
        return whole

    def _stored_name(self, name: str) -> str | None:
        """Return the name of a weight in the files; None where they hold its parts."""
        if name in self._stored:
            return self._stored[name]
        aliases = [tied for tied, other in self._tied.items() if other == name]
        return next((self._stored[a] for a in aliases if a in self._stored), None)

    def _tensor(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
            return tensor


__all__ = ["WeightReader", "empty_causal_lm", "fill_with_zeros", "replace_weight"]
