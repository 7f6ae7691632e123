"""Weights -> a Hugging Face folder that transformers and vLLM load."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from topd_ray.engines.protocols import NamedArray
from topd_ray.engines.tensors import view_as_torch
from topd_ray.models.files import CONFIG, read_json
from topd_ray.models.headers import INDEX, SINGLE

_SHARD_BYTES = 5 * 10**9
# config, generation config, tokenizer, chat template
_COPIED = {".json", ".jinja", ".model", ".txt"}


def export_folder(
    weights: Iterable[NamedArray],
    *,
    source: Path,
    target: Path,
    max_shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write `weights` with the config and tokenizer of `source`; replaces `target`.

    The folder is written beside `target` and renamed at the end, so that `target` is
    whole or absent if the process dies. Up to `max_shard_bytes` the weights are one
    file, above it several and an index. The config names the dtype of the weights.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}-"
    ) as aside:
        folder = Path(aside) / "new"
        folder.mkdir()
        for path in source.iterdir():
            if path.is_file() and path.suffix in _COPIED and path.name != INDEX:
                shutil.copyfile(path, folder / path.name)
        dtypes = _write_weights(weights, folder, max_shard_bytes)
        if len(dtypes) == 1:
            _set_dtype(folder / CONFIG, dtypes.pop())
        if target.exists():
            target.rename(Path(aside) / "old")
        folder.rename(target)


def _write_weights(
    weights: Iterable[NamedArray], folder: Path, max_shard_bytes: int
) -> set[str]:
    """Write the shards, and their index where there are several; return the dtypes."""
    shards: list[list[str]] = []
    total = 0
    dtypes: set[str] = set()
    for shard in _shards(weights, max_shard_bytes):
        tensors = {name: view_as_torch(array) for name, array in shard}
        save_file(tensors, folder / _part(len(shards)), metadata={"format": "pt"})
        shards.append(list(tensors))
        total += sum(array.nbytes for _, array in shard)
        # numpy has no bfloat16: such weights come as their bits in uint16
        dtypes |= {
            "bfloat16" if array.dtype == np.uint16 else array.dtype.name
            for _, array in shard
        }
    names = [_final(place, len(shards)) for place in range(len(shards))]
    for place, name in enumerate(names):
        (folder / _part(place)).rename(folder / name)
    if len(shards) > 1:
        files: dict[str, str] = {}
        for name, held in zip(names, shards, strict=True):
            files |= dict.fromkeys(held, name)
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return dtypes


def _shards(
    weights: Iterable[NamedArray], max_bytes: int
) -> Iterator[list[NamedArray]]:
    shard: list[NamedArray] = []
    shard_bytes = 0
    for name, array in weights:
        if shard and shard_bytes + array.nbytes > max_bytes:
            yield shard
            shard = []
            shard_bytes = 0
        shard.append((name, array))
        shard_bytes += array.nbytes
    if shard:
        yield shard


def _part(place: int) -> str:
    """Return a shard's name while the number of shards is unknown."""
    return f"part-{place:05d}"


def _final(place: int, count: int) -> str:
    if count == 1:
        return SINGLE
    return f"model-{place + 1:05d}-of-{count:05d}.safetensors"


def _set_dtype(path: Path, dtype: str) -> None:
    """Write the dtype of the weights into config.json.

    A loader that trusts the config would otherwise round float32 weights to the
    bfloat16 of the source.
    """
    config = read_json(path)
    config.pop("torch_dtype", None)
    path.write_text(json.dumps(config | {"dtype": dtype}, indent=2), encoding="utf-8")


__all__ = ["export_folder"]
