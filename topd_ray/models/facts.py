"""What a run needs to know of a model without loading it.

Preflight, engines and learner read each fact here, by one rule.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topd_ray.errors import UserError
from topd_ray.models.files import read_config, whole_number
from topd_ray.models.headers import TensorFact, tensor_facts

HEAD = "lm_head.weight"
# The second name is that of a folder saved from the model without its head.
EMBEDDING_NAMES = ("model.embed_tokens.weight", "embed_tokens.weight")
Shapes = dict[str, tuple[int, ...]]
"""Shape of each weight by its Hugging Face name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Size and limits of a model folder.

    Example: Qwen3-0.6B has num_parameters=596049920, vocab_size=151936,
    hidden_size=1024, layers=28, max_position_embeddings=40960,
    dtype="bfloat16", tied=True.
    """

    num_parameters: int
    """A head tied to the embedding counts once."""
    vocab_size: int
    """Rows of the embedding, which may be more than the tokenizer has entries."""
    hidden_size: int
    layers: int
    max_position_embeddings: int
    dtype: str
    """Number format of most parameters, for example "bfloat16"."""
    tied: bool
    """Whether the output head is the input embedding."""


def read_facts(folder: Path) -> ModelFacts:
    """Read config.json and the headers of the weights.

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
        # Most, not all: some models keep norms or routers in float32.
        dtype=sizes.most_common(1)[0][0],
        tied=_is_tied(config, tensors),
    )


def check_context(facts: ModelFacts, needed: int, role: str) -> None:
    """Raise UserError where the model was not made for sequences of `needed` tokens."""
    if facts.max_position_embeddings < needed:
        raise UserError(
            f"{role}: max_position_embeddings={facts.max_position_embeddings} in its"
            f" config.json, but a run of this config needs {needed}; lower"
            " prompts.max_tokens, rollout.max_response_tokens, or, where the teacher"
            " reads another prompt, prompts.max_form_tokens"
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


__all__ = [
    "EMBEDDING_NAMES",
    "HEAD",
    "ModelFacts",
    "Shapes",
    "check_context",
    "read_facts",
]
