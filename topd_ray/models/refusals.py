"""Kinds of models that a run cannot use, refused by name before it starts.

A loss over the full vocabulary multiplies hidden states by the output head and calls
nothing else of the model, on both sides. So the head must be a matrix alone: no bias,
and no scale or soft cap on the logits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topd_ray.errors import UserError
from topd_ray.models.architecture import config_of_text_model
from topd_ray.models.files import CONFIG
from topd_ray.models.headers import tensor_facts

LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Fields of config.json that cap the logits; null is no cap."""
LOGIT_SCALES = (
    "lm_head_multiplier",
    "logit_scale",
    "logits_scaling",
    "output_multiplier",
)
"""Fields of config.json that scale the logits; null and 1 are no scale."""
# GPT-J and Phi have a head with a bias; GPT-NeoX names its head embed_out.
HEAD_BIASES = ("lm_head.bias", "embed_out.bias")


def check_logits(folder: Path, *, role: str) -> None:
    """Raise UserError unless the model's logits are its head times the hidden state."""
    tensors = tensor_facts(folder)
    biases = [name for name in HEAD_BIASES if name in tensors]
    refuse_logit_transforms(
        config_of_text_model(folder),
        head_bias=biases[0] if biases else None,
        where=f"{role}: {folder}",
    )


def refuse_logit_transforms(
    config: Mapping[str, Any], *, head_bias: str | None, where: str
) -> None:
    """Raise UserError where a model does more to its logits than its head does.

    Args:
        config: the config of a model, with the defaults of its kind, as a mapping.
        head_bias: name of the tensor that the head adds; None: it adds none.
        where: the model's role and place, for the error.
    """
    if head_bias is not None:
        raise UserError(
            f"{where}: its output head adds a bias ({head_bias}); {_ONLY_A_HEAD}"
        )
    caps = [name for name in LOGIT_CAPS if config.get(name) is not None]
    scales = [name for name in LOGIT_SCALES if config.get(name) not in (None, 1)]
    for name in caps + scales:
        raise UserError(
            f"{where}: its {CONFIG}, or the default of its model_type, sets"
            f" {name}={config[name]}; {_ONLY_A_HEAD}"
        )
    base = config.get("dim_model_base")
    if base is not None and base != config.get("hidden_size"):
        raise UserError(
            f"{where}: its {CONFIG}, or the default of its model_type, sets"
            f" dim_model_base={base}, by which MiniCPM scales the hidden state before"
            f" the head; {_ONLY_A_HEAD}"
        )


_ONLY_A_HEAD = (
    "a run multiplies hidden states by the head and nothing more, so its losses would"
    " be of other logits; take a model whose logits are its head times the hidden state"
)

__all__ = [
    "check_logits",
    "refuse_logit_transforms",
]
