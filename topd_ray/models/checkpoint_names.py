"""Weights of a transformers model -> the names and shapes of its published files.

transformers 5 holds the experts of a layer in one weight, `mlp.experts.gate_up_proj`,
and splits it when it saves. Engines take the names of the files.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `topd check` of a dense model loads no torch
    from torch import Tensor

NamedWeight = tuple[str, "Tensor"]


class CheckpointNames:
    """The conversions that transformers makes when it saves a model."""

    def __init__(self, model: Any) -> None:
        """Take a model of any origin; a wrapped one cannot be converted."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import PrefixChange

        conversions = getattr(model, "_weight_conversions", None)
        if conversions is None:
            # A model that is made from its config, as transformers' own saving does.
            conversions = [
                conversion
                for conversion in get_model_conversion_mapping(model, add_legacy=False)
                if not isinstance(conversion, PrefixChange)
            ]
            # Without it transformers would search all modules again for every weight.
            model._weight_conversions = conversions
        self._model = model if conversions else None

    def of(self, name: str, weight: "Tensor") -> list[NamedWeight]:
        """Return the weights of the files that one weight of the model holds.

        Their memory may be that of `weight`. A weight on the meta device gives shapes.
        """
        if self._model is None:
            return [(name, weight)]
        from transformers.core_model_loading import revert_weight_conversion

        return list(revert_weight_conversion(self._model, {name: weight}).items())

    def places(self, name: str, weight: "Tensor") -> list[NamedWeight]:
        """Return each weight of the files with the places of its numbers in `weight`.

        Example: a weight of 4 numbers that is saved as `a` and `b` gives ("a", [0, 1])
        and ("b", [2, 3]); shapes are those of the files.
        """
        import torch

        return self.of(name, torch.arange(weight.numel()).reshape(weight.shape))


__all__ = ["CheckpointNames"]
