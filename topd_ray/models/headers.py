"""Names, shapes and dtypes of a model folder's tensors, from the file headers alone.

Where there is an index, the index says which files hold the weights. Another
*.safetensors file beside them is ignored: the repositories of Mistral models hold the
same weights a second time, as consolidated.safetensors and under other names.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topd_ray.errors import UserError
from topd_ray.models.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFact:
    """One tensor of a safetensors file, as the file's header describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """For example "bfloat16"; a format that is not in `DTYPES` keeps its own name."""


def tensor_facts(folder: Path) -> dict[str, TensorFact]:
    """Return every tensor of the folder's weights by name.

    Raises UserError where there are no weights, or where a file is broken or missing.
    """
    # The index first: beside it, a file of the single name may be a left-over.
    if (folder / INDEX).is_file():
        return _sharded_facts(folder)
    if (folder / SINGLE).is_file():
        return _header_facts(folder / SINGLE)
    pickles = sorted(_pickles(folder))
    if pickles:
        raise UserError(
            f"{folder}: weights as {pickles[0]} (pickle), safetensors only; convert"
            " with transformers' save_pretrained"
        )
    raise UserError(f"{folder}: no weights; expected {SINGLE} or {INDEX}")


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights, sorted by name."""
    return sorted({fact.file for fact in tensor_facts(folder).values()})


def stray_files(folder: Path) -> list[str]:
    """Return the names of safetensors files that hold none of the weights, sorted.

    Mistral's repositories hold `consolidated.safetensors`, the same weights once more.
    """
    weights = {path.name for path in weight_files(folder)}
    present = {path.name for path in folder.glob("*.safetensors")}
    return sorted(present - weights)


def _pickles(folder: Path) -> list[str]:
    names: list[str] = []
    for pattern in PICKLES:
        names += [path.name for path in folder.glob(pattern)]
    return names


def _sharded_facts(folder: Path) -> dict[str, TensorFact]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(
            f"{folder / INDEX}: expected a `weight_map` from tensors to shards"
        )
    shards = sorted({str(shard) for shard in weight_map.values()})
    missing = [shard for shard in shards if not _is_shard(folder, shard)]
    if missing:
        raise UserError(
            f"{folder / INDEX}: names {len(shards)} shards, {len(missing)} of them"
            f" missing, first {missing[0]!r}; download the model again"
        )
    facts: dict[str, TensorFact] = {}
    for shard in shards:
        facts |= _header_facts(folder / shard)
    for name, shard in weight_map.items():
        if name not in facts or facts[name].file.name != shard:
            raise UserError(f"{folder / INDEX}: tensor {name!r} is not in {shard}")
    return facts


def _is_shard(folder: Path, name: str) -> bool:
    # An index comes with a download: a name such as ../x must not lead out of it.
    return Path(name).name == name and (folder / name).is_file()


def _header_facts(file: Path) -> dict[str, TensorFact]:
    """Return what a safetensors header says of its tensors.

    The file is 8 bytes of length, a JSON header, then exactly the bytes it promises.
    """
    header, data_bytes = _read_header(file)
    facts: dict[str, TensorFact] = {}
    promised_bytes = 0
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                shape = tuple(int(axis) for axis in entry["shape"])
                dtype = DTYPES.get(entry["dtype"], str(entry["dtype"]))
                facts[name] = TensorFact(file=file, shape=shape, dtype=dtype)
                promised_bytes = max(promised_bytes, int(entry["data_offsets"][1]))
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError(f"{file}: header entry of {name!r} is malformed") from None
    if promised_bytes != data_bytes:
        raise UserError(
            f"{file}: truncated or overlong: {data_bytes} bytes of weights, its header"
            f" promises {promised_bytes}; download it again"
        )
    if not facts:
        raise UserError(f"{file}: holds no tensors")
    return facts


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header and the number of bytes behind it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        # A length from a broken file can be anything: without this check it is read
        # into memory.
        header_bytes = stream.read(length) if length <= size - 8 else b""
    try:
        header = json.loads(header_bytes)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError(
            f"{file}: truncated or no safetensors file ({size} bytes, header"
            " unreadable); download it again (with git: `git lfs pull`)"
        )
    return header, size - 8 - length


__all__ = [
    "INDEX",
    "SINGLE",
    "TensorFact",
    "stray_files",
    "tensor_facts",
    "weight_files",
]
