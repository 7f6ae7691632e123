"""Model folders: every unfit one, and every first difference between two, is one
readable line.
"""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import CHAT_TEMPLATE, EOS_ID, PAD_ID, VOCAB
from topd_ray.errors import UserError
from topd_ray.models.folder import (
    check_context,
    check_folder,
    compare_models,
    find_model,
    read_facts,
    resolve_model,
)

Edit = Callable[[Path], object]


@pytest.fixture
def folder(student_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(student_folder, tmp_path / "model")


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


INDEX = "model.safetensors.index.json"


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


def test_facts_agree_with_the_model(teacher_folder: Path, student_folder: Path) -> None:
    for path, hidden_size, tied in (
        (teacher_folder, 64, False),
        (student_folder, 32, True),
    ):
        facts = read_facts(path)
        tensors = load_file(path / "model.safetensors")
        assert facts.num_parameters == sum(
            tensor.numel() for tensor in tensors.values()
        )
        assert facts.vocab_size == len(VOCAB)
        assert (facts.hidden_size, facts.layers, facts.tied) == (hidden_size, 2, tied)
        assert (facts.max_position_embeddings, facts.dtype) == (512, "float32")
        assert facts.eos_ids == {EOS_ID}


def test_a_tied_head_that_was_saved_anyway_counts_once(folder: Path) -> None:
    before = read_facts(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert read_facts(folder) == before


def test_the_dtype_is_that_of_most_parameters(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    mixed = {n: t if "norm" in n else t.to(torch.bfloat16) for n, t in tensors.items()}
    save_file(mixed, folder / "model.safetensors")
    assert read_facts(folder).dtype == "bfloat16"


def test_eos_ids_are_those_of_both_files(folder: Path) -> None:
    edit_json("generation_config.json", eos_token_id=[EOS_ID, PAD_ID])(folder)
    assert read_facts(folder).eos_ids == {EOS_ID, PAD_ID}
    edit_json("config.json", eos_token_id=None)(folder)
    (folder / "generation_config.json").unlink()
    assert read_facts(folder).eos_ids == frozenset()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            edit_json("config.json", vocab_size="64"),
            "vocab_size='64': expected a whole number",
        ),
        (
            edit_json("config.json", hidden_size=None),
            "hidden_size=None: expected a whole number",
        ),
        (
            edit_json("config.json", eos_token_id="</s>"),
            "eos_token_id='</s>': expected a token id",
        ),
    ],
)
def test_a_config_that_lacks_a_fact_is_named(
    edit: Edit, message: str, folder: Path
) -> None:
    edit(folder)
    with pytest.raises(UserError, match=str(folder)) as caught:
        read_facts(folder)
    assert message in str(caught.value)


def test_a_context_that_is_too_short_names_both_numbers(folder: Path) -> None:
    check_context(read_facts(folder), 512, "student")
    with pytest.raises(
        UserError, match=r"student: max_position_embeddings=512 .* needs 513"
    ):
        check_context(read_facts(folder), 513, "student")


def edit_vocabulary(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        change(tokenizer)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    return edit


def swap_two_words(tokenizer: dict[str, Any]) -> None:
    vocab = tokenizer["model"]["vocab"]
    vocab["w1"], vocab["w2"] = vocab["w2"], vocab["w1"]


def add_token(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"].append({"id": len(VOCAB), "content": "<think>"})


def test_models_of_one_family_fit(student_folder: Path, teacher_folder: Path) -> None:
    compare_models(student_folder, teacher_folder)


def test_a_unigram_vocabulary_compares_by_place(
    folder: Path, teacher_folder: Path
) -> None:
    def to_unigram(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["vocab"] = [[word, -1.0] for word in VOCAB]

    edit_vocabulary(to_unigram)(folder)
    compare_models(folder, teacher_folder)


LATER = CHAT_TEMPLATE.replace("assistant", "helper")
DIFFERENT: list[tuple[Edit, str]] = [
    (edit_vocabulary(swap_two_words), "vocabulary: id 17 is 'w2' in the student's"),
    (
        edit_vocabulary(add_token),
        "id 64 is '<think>' in the student's tokenizer.json and missing",
    ),
    (
        edit_vocabulary(lambda t: t.pop("model")),
        "tokenizer.json: expected `model.vocab`",
    ),
    (
        edit_json("config.json", vocab_size=128),
        "vocab_size: 128 in the student's config.json, 64",
    ),
    (
        edit_json("config.json", eos_token_id=[2, 0]),
        "EOS token ids: [0, 2] for the student, [2]",
    ),
    (edit_json("generation_config.json", eos_token_id=0), "EOS token ids: [0, 2]"),
    (
        write("chat_template.jinja", LATER.encode()),
        "student 'ompt %}<|im_start|> helper{% endif %}'",
    ),
    (
        write("chat_template.jinja", CHAT_TEMPLATE.encode() + b"\n"),
        "{% endif %}\\n', teacher",
    ),
    (remove("chat_template.jinja"), "chat template: the student has none"),
]


@pytest.mark.parametrize(("edit", "message"), DIFFERENT)
def test_the_first_difference_between_two_models_is_named(
    edit: Edit, message: str, folder: Path, teacher_folder: Path
) -> None:
    edit(folder)
    with pytest.raises(UserError) as caught:
        compare_models(folder, teacher_folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_the_place_of_a_template_difference_is_its_first_character(
    folder: Path, teacher_folder: Path
) -> None:
    write("chat_template.jinja", LATER.encode())(folder)
    place = CHAT_TEMPLATE.index("assistant")
    with pytest.raises(UserError, match=f"differs from character {place} on"):
        compare_models(folder, teacher_folder)


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, [{"name": "default", "template": CHAT_TEMPLATE}]]
)
def test_a_template_inside_tokenizer_config_counts(
    template: object, folder: Path, teacher_folder: Path
) -> None:
    (folder / "chat_template.jinja").unlink()
    edit_json("tokenizer_config.json", chat_template=template)(folder)
    compare_models(folder, teacher_folder)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


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
