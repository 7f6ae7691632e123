"""Whether a model can be split over GPUs as its engine's section says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topd_ray.config.base import EngineConfig
from topd_ray.errors import UserError
from topd_ray.models.architecture import config_of_text_model

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Fields of config.json that count the experts of a layer."""
_SLICED = ("num_attention_heads", "intermediate_size")
"""Fields of config.json whose value each GPU holds an equal part of."""


def check_splits(folder: Path, engine: EngineConfig, *, field: str) -> None:
    """Raise UserError where the engine cannot be split as it is to be.

    Args:
        folder: The model's folder.
        engine: The engine's section.
        field: The section's name in the config, for the error.
    """
    if engine.backend != "vllm":
        return
    config = config_of_text_model(folder)
    num_experts = next((config[name] for name in _EXPERTS if config.get(name)), 0)
    if engine.expert_parallel and not num_experts:
        raise UserError(
            f"{field}.expert_parallel=True with {folder}, which has no experts; drop it"
        )
    for name, count in _split_sizes(config, engine, num_experts).items():
        if count % engine.tensor_parallel:
            raise UserError(
                f"{field}.tensor_parallel={engine.tensor_parallel} does not divide"
                f" {name}={count} of {folder}; set it to a divisor of {count}"
            )
    _check_key_heads(folder, config, engine.tensor_parallel, field)


def _split_sizes(
    config: Mapping[str, Any], engine: EngineConfig, num_experts: int
) -> dict[str, int]:
    names = list(_SLICED)
    if num_experts and not engine.expert_parallel:
        names.append("moe_intermediate_size")
    return {name: config[name] for name in names if config.get(name)}


def _check_key_heads(
    folder: Path, config: Mapping[str, Any], parts: int, field: str
) -> None:
    """Refuse key heads that can neither be dealt out nor be copied evenly."""
    count = config.get("num_key_value_heads") or 1
    if count % parts and parts % count:
        raise UserError(
            f"{field}.tensor_parallel={parts} is neither a divisor nor a multiple of"
            f" num_key_value_heads={count} of {folder}; set it to one"
        )


__all__ = ["check_splits"]
