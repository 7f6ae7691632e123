"""Single tensors of a model folder, without loading the model.

Axes: V vocabulary, D width.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from topd_ray.errors import UserError
from topd_ray.models.facts import EMBEDDING_NAMES, HEAD, read_facts
from topd_ray.models.headers import tensor_facts

HEAD_NAMES = (HEAD,)


def load_tensor(folder: Path, *names: str) -> Tensor:
    """Return the first of `names` that the folder's weights hold, on the CPU.

    The dtype is that of the file. Raises UserError where none of the names is there.
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


def input_embedding(folder: Path) -> Float[Tensor, "V D"]:
    """Return the embedding: one row for each token id, and padding behind them."""
    return load_tensor(folder, *EMBEDDING_NAMES)


def output_head(folder: Path) -> Float[Tensor, "V D"]:
    """Return the matrix from hidden states to logits.

    It is the embedding itself where the two are tied, and has its padding.
    """
    if read_facts(folder).tied:
        return input_embedding(folder)
    return load_tensor(folder, *HEAD_NAMES)


def read_weights(folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield every weight of a folder as a numpy array; bfloat16 as its bits in
    uint16.
    """
    # One at a time, so that no second copy of the model is in memory.
    for name in tensor_facts(folder):
        tensor = load_tensor(folder, name)
        if tensor.dtype == torch.bfloat16:
            yield name, tensor.view(torch.uint16).numpy()
        else:
            yield name, tensor.numpy()


__all__ = [
    "EMBEDDING_NAMES",
    "HEAD_NAMES",
    "input_embedding",
    "load_tensor",
    "output_head",
    "read_weights",
]
