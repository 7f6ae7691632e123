"""Adapters of low rank (LoRA; Hu et al., 2021) on the linear layers of a student.

PEFT makes the layers. The merged weights travel, not the adapters: every engine loads
them as it loads those of any other student, and decodes at full speed.
"""

from typing import Any

import torch
from torch import nn

from topd_ray.config import LoraConfig
from topd_ray.engines.adapters import BASE, Adapter

_NAME = "default"
"""PEFT's name of a model's first adapter."""


def add_adapters(student: nn.Module, lora: LoraConfig, *, seed: int) -> None:
    """Freeze a student and add an adapter to every layer that `lora` names.

    An adapter starts at 0, so the student is still the one that was loaded.

    Args:
        student: The model; changed in place.
        lora: Rank, alpha, and names of layers, as `models.adapters` has checked them.
        seed: Seed of the adapters' first matrices. It must be the same on every rank.
    """
    import peft  # seconds, and only such a student needs it

    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, student, adapter_name=_NAME)


def adapters_of(student: nn.Module) -> dict[str, Adapter]:
    """Return the adapter of each weight that has one, by its name in the student."""
    adapters = dict[str, Adapter]()
    for name, weight in student.named_parameters():
        prefix = name.removesuffix(f"{BASE}.weight")
        if prefix == name:
            continue
        layer: Any = student.get_submodule(prefix)
        assert weight is layer.base_layer.weight
        adapters[name] = Adapter(
            down_RI=layer.lora_A[_NAME].weight,
            up_OR=layer.lora_B[_NAME].weight,
            scale=layer.scaling[_NAME],
        )
    return adapters


__all__ = ["adapters_of", "add_adapters"]
