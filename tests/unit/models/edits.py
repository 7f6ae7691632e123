"""Ways to break or change a model folder, as functions of the folder."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"
Edit = Callable[[Path], object]


def edit_json(name: str, **values: Any) -> Edit:
    """Set keys of one JSON file; a value of None removes the key."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        content = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(content))

    return edit


def remove(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, size: int) -> Edit:
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[:size]
    )


def to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shard(folder: Path) -> None:
    """Split the weights over two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    (folder / "model.safetensors").unlink()


def swap_shards(folder: Path) -> None:
    """An index that names every tensor's other shard."""
    index = json.loads((folder / INDEX).read_text())
    other = {"model-1.safetensors": "model-2.safetensors"}
    other |= {second: first for first, second in other.items()}
    weight_map = {name: other[file] for name, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def after_sharding(edit: Edit) -> Edit:
    return lambda folder: (shard(folder), edit(folder))


def edit_header(**entry: Any) -> Edit:
    """A safetensors file of one tensor whose header entry is `entry`."""
    header = json.dumps({"w": entry}).encode()
    return write(
        "model.safetensors", struct.pack("<Q", len(header)) + header + b"\0" * 4
    )


def add_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors into the weights, in the place of those of the same name."""
    held = load_file(folder / "model.safetensors")
    save_file(held | tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop_tensors(folder: Path, *names: str) -> None:
    held = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in held.items() if name not in names}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
