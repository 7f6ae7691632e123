"""A fingerprint changes with the file, and costs little for a large one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from topd_ray.config import Config, parse_config
from topd_ray.inputs import fingerprints
from topd_ray.inputs.fingerprints import Fingerprints, take_fingerprints


@pytest.fixture
def world(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(student_folder, tmp_path / "student")
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    (tmp_path / "train.jsonl").write_text('{"prompt": "1", "reference": "2"}\n')
    (tmp_path / "held.jsonl").write_text('{"prompt": "2", "answer": "2"}\n')
    (tmp_path / "forms.yaml").write_text("reference: '{problem} {reference}'\n")
    return tmp_path


def config(world: Path, method: str = "opd", **prompts: Any) -> Config:
    own = {} if method == "opsd" else {"model": str(world / "teacher")}
    return parse_config(
        {
            "run": {"method": method},
            "prompts": {"path": str(world / "train.jsonl")} | prompts,
            "evaluation": {"path": str(world / "held.jsonl")},
            "teacher": own,
            "learner": {"model": str(world / "student")},
        },
        source="test",
    )


def taken(world: Path, **options: Any) -> Fingerprints:
    return take_fingerprints(
        config(world, **options), student=world / "student", teacher=world / "teacher"
    )


def append(name: str) -> Callable[[Path], object]:
    def edit(world: Path) -> None:
        with (world / name).open("ab") as file:
            file.write(b"\n")

    return edit


def flip_last_byte(world: Path) -> None:
    file = world / "teacher" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def add_template(world: Path) -> None:
    (world / "teacher" / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (append("train.jsonl"), "prompts.path"),
        (append("held.jsonl"), "evaluation.path"),
        (append("student/config.json"), "learner.model/config.json"),
        (append("teacher/tokenizer.json"), "teacher.model/tokenizer.json"),
        (add_template, "teacher.model/chat_template.jinja"),
        (flip_last_byte, "teacher.model/weights"),
    ],
)
def test_a_change_is_named_by_field_and_part(
    edit: Callable[[Path], object], name: str, world: Path
) -> None:
    before = taken(world)
    assert taken(world) == before
    edit(world)
    after = taken(world)
    assert {key for key in before | after if before.get(key) != after.get(key)} == {
        name
    }


def test_a_folder_that_was_moved_has_the_same_fingerprints(world: Path) -> None:
    before = taken(world)
    moved = world / "moved"
    shutil.copytree(world, moved)
    assert taken(moved) == before


def test_forms_count_where_they_are_read_and_a_teacher_where_it_is_one(
    world: Path,
) -> None:
    forms = str(world / "forms.yaml")
    assert "prompts.forms" not in taken(world, forms=forms)
    names = taken(world, method="opsd", forms=forms)
    assert "prompts.forms" in names
    assert not any(name.startswith("teacher.model") for name in names)
    assert "prompts.forms" not in taken(world, method="opsd")


def test_a_data_set_folder_is_all_its_files(world: Path) -> None:
    import datasets

    folder = world / "data"
    datasets.Dataset.from_list([{"prompt": "1"}]).save_to_disk(folder)
    before = taken(world, path=str(folder))["prompts.path"]
    state = folder / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_x": 1}))
    assert taken(world, path=str(folder))["prompts.path"] != before


def test_large_weights_are_read_in_pieces_from_first_to_last(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the pieces nothing is read, and the last byte still counts."""
    monkeypatch.setattr(fingerprints, "PIECE_BYTES", 64)
    file = world / "teacher" / "model.safetensors"
    pieces = list(fingerprints._pieces(file))
    assert sum(map(len, pieces[1:])) == 64 * fingerprints.NUM_PIECES
    assert pieces[1] == file.read_bytes()[:64]
    assert pieces[-1] == file.read_bytes()[-64:]
    before = taken(world)
    flip_last_byte(world)
    assert taken(world) != before
