"""What a Hugging Face model folder says about itself, read without loading a weight."""

import json
from pathlib import Path
from typing import Any, cast

from topd_ray.errors import UserError

Shapes = dict[str, tuple[int, ...]]
_HEADER_BYTES = 8
TIED_HEAD = "lm_head.weight"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json; raises UserError where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: no config.json there; give a folder with a saved model"
        )
    return _json(path)


def eos_ids(folder: Path) -> tuple[int, ...]:
    """Token ids that end a response: generation_config.json's, else config.json's;
    ascending.
    """
    generation = folder / "generation_config.json"
    found = _json(generation).get("eos_token_id") if generation.is_file() else None
    if found is None:
        found = read_config(folder).get("eos_token_id")
    if found is None:
        raise UserError(
            f"{folder}: neither generation_config.json nor config.json has an"
            " eos_token_id, so no response could ever end; add one"
        )
    return (found,) if isinstance(found, int) else tuple(sorted(found))


def weight_shapes(folder: Path) -> Shapes:
    """Name and shape of every weight in the safetensors files; a tied head is left
    out.
    """
    shapes: Shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes |= _header_shapes(path)
    if not shapes:
        raise UserError(
            f"{folder}: no *.safetensors there; save the model as safetensors"
        )
    if read_config(folder).get("tie_word_embeddings"):
        shapes.pop(TIED_HEAD, None)
    return shapes


def _header_shapes(path: Path) -> Shapes:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_BYTES), "little")
        header = json.loads(file.read(length))
    return {
        name: tuple(t["shape"]) for name, t in header.items() if name != "__metadata__"
    }


def _json(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))


__all__ = ["TIED_HEAD", "Shapes", "eos_ids", "read_config", "weight_shapes"]
