"""Kinds of models that a run cannot use, refused by name before it starts.

A loss over the full vocabulary multiplies hidden states by the output head and calls
nothing else of the model, on both sides. So the head must be a matrix alone: no bias,
and no scale or soft cap on the logits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topd_ray.errors import UserError
from topd_ray.models.files import CONFIG, read_config
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
LOGIT_DEFAULTS: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625},
    "gemma2": {"final_logit_softcapping": 30.0},
    "minicpm3": {"dim_model_base": 256},
    "nanochat": {"final_logit_softcapping": 15.0},
    "recurrent_gemma": {"logits_soft_cap": 30.0},
    "vaultgemma": {"final_logit_softcapping": 30.0},
    "xlstm": {"output_logit_soft_cap": 30.0},
}
"""What transformers assumes for a `model_type` whose config.json leaves the field
out.
"""
# GPT-J and Phi have a head with a bias; GPT-NeoX names its head embed_out.
HEAD_BIASES = ("lm_head.bias", "embed_out.bias")


def check_logits(folder: Path, *, role: str) -> None:
    """Raise UserError unless the model's logits are its head times the hidden state."""
    tensors = tensor_facts(folder)
    biases = [name for name in HEAD_BIASES if name in tensors]
    refuse_logit_transforms(
        read_config(folder),
        head_bias=biases[0] if biases else None,
        where=f"{role}: {folder}",
    )


def refuse_logit_transforms(
    config: Mapping[str, Any], *, head_bias: str | None, where: str
) -> None:
    """Raise UserError where a model does more to its logits than its head does.

    Args:
        config: what config.json holds, or a loaded model's config as a mapping.
        head_bias: name of the tensor that the head adds; None: it adds none.
        where: the model's role and place, for the error.
    """
    if head_bias is not None:
        raise UserError(
            f"{where}: its output head adds a bias ({head_bias}); {_ONLY_A_HEAD}"
        )
    # A field that config.json sets to null stays null, as in transformers.
    values = LOGIT_DEFAULTS.get(str(config.get("model_type")), {}) | dict(config)
    caps = [name for name in LOGIT_CAPS if values.get(name) is not None]
    scales = [name for name in LOGIT_SCALES if values.get(name) not in (None, 1)]
    for name in caps + scales:
        raise UserError(
            f"{where}: its {CONFIG} sets {name}={values[name]}; {_ONLY_A_HEAD}"
        )
    base = values.get("dim_model_base")
    if base is not None and base != values.get("hidden_size"):
        raise UserError(
            f"{where}: its {CONFIG} sets dim_model_base={base}, by which MiniCPM scales"
            f" the hidden state before the head; {_ONLY_A_HEAD}"
        )


_ONLY_A_HEAD = (
    "a run multiplies hidden states by the head and nothing more, so its losses would"
    " be of other logits; take a model whose logits are its head times the hidden state"
)

__all__ = [
    "LOGIT_DEFAULTS",
    "check_logits",
    "refuse_logit_transforms",
]
