"""Weights -> a Hugging Face folder that transformers and vLLM load."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from topd_ray.engines.protocols import NamedArray
from topd_ray.engines.tensors import seen_as_torch

_SHARD_BYTES = 5 * 10**9
_COPIED = {
    ".json",
    ".jinja",
    ".model",
    ".txt",
}  # config, tokenizer, chat template, generation
_INDEX = "model.safetensors.index.json"


def export_folder(
    weights: Iterable[NamedArray],
    *,
    source: Path,
    target: Path,
    max_shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write `weights` with the config and tokenizer of `source`; `target` is replaced
    at the end.

    Written aside and renamed, so `target` is whole or absent, whenever the process
    dies. One file up to `max_shard_bytes`, else several and an index. The config names
    the dtype of the weights.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}-"
    ) as aside:
        folder = Path(aside) / "new"
        folder.mkdir()
        for path in source.iterdir():
            if path.is_file() and path.suffix in _COPIED and path.name != _INDEX:
                shutil.copyfile(path, folder / path.name)
        dtypes = _write_weights(weights, folder, max_shard_bytes)
        if len(dtypes) == 1:
            _set_dtype(folder / "config.json", dtypes.pop())
        if target.exists():
            target.rename(Path(aside) / "old")
        folder.rename(target)


def _write_weights(
    weights: Iterable[NamedArray], folder: Path, max_shard_bytes: int
) -> set[str]:
    """The shards, and their index where there are several; returns the dtypes met."""
    shards, total, dtypes = list[list[str]](), 0, set[str]()
    for shard in _shards(weights, max_shard_bytes):
        tensors = {name: seen_as_torch(array) for name, array in shard}
        save_file(tensors, folder / _part(len(shards)), metadata={"format": "pt"})
        shards.append(list(tensors))
        total += sum(array.nbytes for _, array in shard)
        dtypes |= {
            "bfloat16" if a.dtype == np.uint16 else a.dtype.name for _, a in shard
        }
    names = [_final(place, len(shards)) for place in range(len(shards))]
    for place, name in enumerate(names):
        (folder / _part(place)).rename(folder / name)
    if len(shards) > 1:
        files = {
            weight: name
            for name, held in zip(names, shards, strict=True)
            for weight in held
        }
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return dtypes


def _shards(
    weights: Iterable[NamedArray], max_bytes: int
) -> Iterator[list[NamedArray]]:
    shard, held = list[NamedArray](), 0
    for name, array in weights:
        if shard and held + array.nbytes > max_bytes:
            yield shard
            shard, held = [], 0
        shard.append((name, array))
        held += array.nbytes
    if shard:
        yield shard


def _part(place: int) -> str:
    """Name while the number of shards is unknown."""
    return f"part-{place:05d}"


def _final(place: int, count: int) -> str:
    if count == 1:
        return "model.safetensors"
    return f"model-{place + 1:05d}-of-{count:05d}.safetensors"


def _set_dtype(path: Path, dtype: str) -> None:
    """Else a loader that trusts the config rounds float32 weights to the source's
    bfloat16.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    path.write_text(json.dumps(config | {"dtype": dtype}, indent=2), encoding="utf-8")


__all__ = ["export_folder"]
