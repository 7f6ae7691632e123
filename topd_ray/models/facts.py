"""What a run needs to know of a model without loading it.

Preflight, engines and learner read each fact here, by one rule.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topd_ray.errors import UserError
from topd_ray.models.files import read_config, read_json, whole_number
from topd_ray.models.headers import TensorFact, tensor_facts

HEAD = "lm_head.weight"
# The second name is that of a folder saved from the model without its head.
EMBEDDING_NAMES = ("model.embed_tokens.weight", "embed_tokens.weight")
Shapes = dict[str, tuple[int, ...]]
"""Shape of each weight by its Hugging Face name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Size, limits and special ids of a model folder.

    Example: Qwen3-0.6B has num_parameters=596049920, vocab_size=151936,
    hidden_size=1024, layers=28, max_position_embeddings=40960, eos_ids=(151643,
    151645), dtype="bfloat16", tied=True.
    """

    num_parameters: int
    """A head tied to the embedding counts once."""
    vocab_size: int
    """Rows of the embedding, which may be more than the tokenizer has entries."""
    hidden_size: int
    layers: int
    max_position_embeddings: int
    eos_ids: tuple[int, ...]
    """Token ids that end a response, ascending; empty where the folder names none."""
    dtype: str
    """Number format of most parameters, for example "bfloat16"."""
    tied: bool
    """Whether the output head is the input embedding."""


def read_facts(folder: Path) -> ModelFacts:
    """Read config.json, generation_config.json and the headers of the weights.

    Raises UserError where one of them is broken or lacks a fact.
    """
    config = read_config(folder)
    tensors = tensor_facts(folder)
    sizes: Counter[str] = Counter()
    for fact in _weights(config, tensors).values():
        sizes[fact.dtype] += math.prod(fact.shape)
    return ModelFacts(
        num_parameters=sizes.total(),
        vocab_size=whole_number(folder, config, "vocab_size"),
        hidden_size=whole_number(folder, config, "hidden_size"),
        layers=whole_number(folder, config, "num_hidden_layers"),
        max_position_embeddings=whole_number(folder, config, "max_position_embeddings"),
        eos_ids=_stop_ids(folder, config),
        # Most, not all: some models keep norms or routers in float32.
        dtype=sizes.most_common(1)[0][0],
        tied=_is_tied(config, tensors),
    )


def eos_ids(folder: Path) -> tuple[int, ...]:
    """Return the token ids that end a response, ascending.

    They are those of generation_config.json, as in vLLM and transformers, and those of
    config.json where generation_config.json has none. Raises UserError where neither
    has one.
    """
    ids = _stop_ids(folder, read_config(folder))
    if not ids:
        raise UserError(
            f"{folder}: neither generation_config.json nor config.json has an"
            " eos_token_id, so no response could ever end; add one"
        )
    return ids


def check_context(facts: ModelFacts, needed: int, role: str) -> None:
    """Raise UserError where the model was not made for sequences of `needed` tokens."""
    if facts.max_position_embeddings < needed:
        raise UserError(
            f"{role}: max_position_embeddings={facts.max_position_embeddings} in its"
            f" config.json, but a run of this config needs {needed}; lower"
            " prompts.max_tokens or rollout.max_response_tokens"
        )


def _is_tied(config: dict[str, Any], tensors: dict[str, TensorFact]) -> bool:
    # transformers leaves the field out where it is the default of the model's type, so
    # a head among the weights has to decide.
    return bool(config.get("tie_word_embeddings", HEAD not in tensors))


def _weights(
    config: dict[str, Any], tensors: dict[str, TensorFact]
) -> dict[str, TensorFact]:
    # save_pretrained of some versions writes a tied head beside its embedding.
    if not _is_tied(config, tensors):
        return tensors
    return {name: fact for name, fact in tensors.items() if name != HEAD}


def _stop_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    generation = folder / "generation_config.json"
    if generation.is_file():
        ids = _ids(generation, read_json(generation).get("eos_token_id"))
        if ids:
            return ids
    return _ids(folder / "config.json", config.get("eos_token_id"))


def _ids(file: Path, value: object) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token_id, int) for token_id in ids):
        raise UserError(
            f"{file}: eos_token_id={value!r}: expected a token id or a list"
        )
    return tuple(sorted(set(ids)))


__all__ = [
    "EMBEDDING_NAMES",
    "HEAD",
    "ModelFacts",
    "Shapes",
    "check_context",
    "eos_ids",
    "read_facts",
]
