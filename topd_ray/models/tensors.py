"""Single tensors of a model folder, without loading the model.

Axes: V vocabulary, D width.
"""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from topd_ray.errors import UserError
from topd_ray.models.folder import read_facts, tensor_facts

EMBEDDING_NAMES = ("model.embed_tokens.weight", "embed_tokens.weight")
HEAD_NAMES = ("lm_head.weight",)


def load_tensor(folder: Path, *names: str) -> Tensor:
    """The first of `names` that the folder's shards hold, in the dtype they store.
    CPU.
    """
    facts = tensor_facts(folder)
    for name in names:
        if name in facts:
            with safe_open(facts[name].file, framework="pt") as shard:
                tensor: Tensor = shard.get_tensor(name)
                return tensor
    wanted = " or ".join(names)
    raise UserError(
        f"{folder}: holds no tensor {wanted} (among {len(facts)}); wrong model family?"
    )


def input_embedding(folder: Path) -> Tensor:
    """E (V, D): row of every token id."""
    return load_tensor(folder, *EMBEDDING_NAMES)


def output_head(folder: Path) -> Tensor:
    """The matrix (V, D) from hidden states to logits: the embedding itself where they
    are tied.
    """
    return (
        input_embedding(folder)
        if read_facts(folder).tied
        else load_tensor(folder, *HEAD_NAMES)
    )
