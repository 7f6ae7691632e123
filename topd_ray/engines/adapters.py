"""Adapters of low rank, and the weights that engines and exports get of them.

Axes: O outputs of a layer, I its inputs, R rank of the adapter.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BASE = ".base_layer"
"""What PEFT puts into the name of a weight that has an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Two trained matrices; scale x up x down is added to a frozen weight."""

    down_RI: nn.Parameter
    up_OR: nn.Parameter
    scale: float
    """alpha / rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingWeight:
    """One weight as engines load it, and the parameters that it is made of."""

    name: str
    """Its Hugging Face name."""
    weight: nn.Parameter
    adapter: Adapter | None = None

    @property
    def parts(self) -> list[nn.Parameter]:
        """Return the parameters that must be whole where `value` is called."""
        if self.adapter is None:
            return [self.weight]
        return [self.weight, self.adapter.down_RI, self.adapter.up_OR]

    @torch.no_grad()
    def value(self) -> Tensor:
        """Return the weight, with its adapter merged, in the weight's number format.

        The merged weight is a new tensor: the frozen one stays as it is, so that no
        rounding adds up from version to version. Without an adapter it is the parameter
        itself.
        """
        weight = self.weight.detach()
        if self.adapter is None:
            return weight
        # float32: a small product must not be rounded before it is added
        merged = torch.addmm(
            weight.float(),
            self.adapter.up_OR.float(),
            self.adapter.down_RI.float(),
            alpha=self.adapter.scale,
        )
        return merged.to(weight.dtype)


def outgoing_weights(
    module: nn.Module, adapters: Mapping[str, Adapter]
) -> list[OutgoingWeight]:
    """Return the weights of a module as engines name them, in the module's order.

    Args:
        module: The student. Tied weights come once.
        adapters: The adapter of each adapted weight, by its name in `module`.

    Returns:
        Every parameter that is not part of an adapter.
    """
    inside = {
        id(part)
        for adapter in adapters.values()
        for part in (adapter.down_RI, adapter.up_OR)
    }
    return [
        OutgoingWeight(
            name=name.replace(f"{BASE}.", "."),
            weight=weight,
            adapter=adapters.get(name),
        )
        for name, weight in module.named_parameters()
        if id(weight) not in inside
    ]


__all__ = ["BASE", "Adapter", "OutgoingWeight", "outgoing_weights"]
