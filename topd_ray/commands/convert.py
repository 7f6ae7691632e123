"""`topd convert`: GGUF file -> model folder."""

import importlib.util
import json
import shutil
import struct
from pathlib import Path
from typing import Any

from topd_ray.errors import UserError, first_line
from topd_ray.models.facts import EMBEDDING_NAMES, HEAD

_MAGIC = b"GGUF"
_NEEDED = ("gguf", "accelerate")
"""Packages that transformers' GGUF reader asks for."""


def convert(file: Path, folder: Path, *, tie: bool = False) -> None:
    """Write a GGUF file's weights, de-quantised to bfloat16, and its tokenizer.

    Output head and input embedding stay two tables where the file holds two different
    ones. Quantised apart, they differ although the original shared one: `tie` makes the
    head the embedding too, since files keep it in more bits. The folder appears whole
    or not at all. Raises UserError where the file cannot be converted.
    """
    _check(file, folder)
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a conversion that was interrupted
    try:
        aside.mkdir(parents=True)
        model = _read(file)
        _write(model, file, aside, tie=tie)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check(file: Path, folder: Path) -> None:
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    with file.open("rb") as opened:
        start = opened.read(len(_MAGIC))
    if start != _MAGIC:
        raise UserError(
            f"{file}: a GGUF file begins with {_MAGIC!r}, this one with {start!r}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: name a folder that does not exist yet")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} cannot be imported: GGUF files are read with"
            " them; install topd_ray[real]"
        )


def _read(file: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    except (ValueError, LookupError, OSError, RuntimeError, struct.error) as error:
        raise UserError(
            f"{file}: transformers cannot read it: {first_line(error)}"
        ) from None
    return model.to(torch.bfloat16)


def _write(model: Any, file: Path, folder: Path, *, tie: bool) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights that are written are not quantised
    weights = {name: array.contiguous() for name, array in model.state_dict().items()}
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    config.tie_word_embeddings = tie or torch.equal(embedding, head)
    if config.tie_word_embeddings:
        (name,) = {*EMBEDDING_NAMES} & {*weights}
        weights[name] = weights.pop(HEAD)
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(folder)
    generation = {
        name: value
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        if (value := getattr(tokenizer, name)) is not None
    }
    (folder / "generation_config.json").write_text(json.dumps(generation) + "\n")


__all__ = ["convert"]
