"""Model folders: found here or on the hub; every unfit one is one readable line."""

import shutil
import struct
from pathlib import Path

import pytest

from tests.unit.models.edits import (
    INDEX,
    Edit,
    after_sharding,
    cut,
    edit_header,
    edit_json,
    remove,
    shard,
    swap_shards,
    to_pickle,
    write,
)
from topd_ray.errors import UserError
from topd_ray.models.facts import read_facts
from topd_ray.models.folder import check_folder, find_model, resolve_model


def test_a_whole_folder_passes_sharded_or_not(folder: Path) -> None:
    check_folder(folder, role="student")
    whole = read_facts(folder)
    shard(folder)
    check_folder(folder, role="student")
    assert read_facts(folder) == whole


UNFIT: list[tuple[Edit, str]] = [
    (shutil.rmtree, "no such folder"),
    (remove("config.json"), "no config.json"),
    (write("config.json", b"{"), "config.json: not readable as JSON"),
    (write("config.json", b"[1]"), "config.json: expected a JSON object, found list"),
    (write("config.json", b"\xff\xfe"), "config.json: expected UTF-8"),
    (write("config.json", b"[" * 100_000), "config.json: not readable as JSON"),
    (
        edit_json("config.json", auto_map={"AutoModel": "x.Y"}),
        "trust_remote_code is off",
    ),
    (remove("model.safetensors"), "no weights; expected model.safetensors"),
    (to_pickle, "pytorch_model.bin (pickle), safetensors only"),
    (remove("tokenizer.json"), "no tokenizer.json"),
    (
        cut("model.safetensors", 0),
        "model.safetensors: truncated or no safetensors file",
    ),
    (cut("model.safetensors", 5), "truncated or no safetensors file (5 bytes"),
    (cut("model.safetensors", 200), "truncated or no safetensors file"),
    (cut("model.safetensors", 20_000), "model.safetensors: truncated or overlong"),
    (
        write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    (write("model.safetensors", struct.pack("<Q", 2) + b"{}"), "holds no tensors"),
    (edit_header(dtype="F32", shape=[1]), "header entry of 'w' is malformed"),
    (
        edit_header(dtype="F32", shape="?", data_offsets=[0, 4]),
        "header entry of 'w' is malformed",
    ),
    (
        edit_header(dtype="F32", shape=[2], data_offsets=[0, 8]),
        "4 bytes of weights, its header",
    ),
    (
        after_sharding(remove("model-2.safetensors")),
        "first 'model-2.safetensors'; download",
    ),
    (after_sharding(edit_json(INDEX, weight_map=None)), "expected a `weight_map`"),
    (
        after_sharding(edit_json(INDEX, weight_map={"w": "../x.safetensors"})),
        "first '../x.safe",
    ),
    (
        after_sharding(edit_json(INDEX, weight_map={"w": "model-1.safetensors"})),
        "tensor 'w' is not in model-1.safetensors",
    ),
    (after_sharding(swap_shards), "' is not in model-"),
    (
        after_sharding(cut("model-1.safetensors", 3000)),
        "model-1.safetensors: truncated",
    ),
]


@pytest.mark.parametrize(("edit", "message"), UNFIT)
def test_an_unfit_folder_is_named_with_its_role_and_file(
    edit: Edit, message: str, folder: Path
) -> None:
    edit(folder)
    with pytest.raises(UserError) as caught:
        check_folder(folder, role="teacher")
    assert str(caught.value).startswith(f"teacher: {folder}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_local_folder_is_found_without_the_hub(folder: Path) -> None:
    assert find_model(str(folder)) == resolve_model(str(folder)) == folder


UNKNOWN_NAMES = [
    "acme/no-such-model",
    "/no/such/folder",
    "",
    "a b",
    "~nobody-here/m",
    "x" * 5000,
]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", UNKNOWN_NAMES)
def test_an_unknown_model_offline_says_what_to_do(name: str) -> None:
    assert find_model(name) is None
    with pytest.raises(UserError, match="no such folder") as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)


def test_a_model_in_the_hub_cache_is_found_offline(offline: Path, folder: Path) -> None:
    cached = offline / "models--acme--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    snapshot = shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    assert find_model("acme/tiny") == resolve_model("acme/tiny") == snapshot
