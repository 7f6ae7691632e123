"""Two models: every first difference between their tokens is one readable line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import VOCAB
from tests.unit.models.edits import Edit, edit_json, write
from topd_ray.errors import UserError
from topd_ray.models.pair import compare_models


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
        edit_json("generation_config.json", eos_token_id=[2, 3]),
        "ends at the ids [2, 3] of the student and [2] of the teacher",
    ),
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


def test_templates_are_no_matter_of_the_folders_alone(
    folder: Path, teacher_folder: Path
) -> None:
    write("chat_template.jinja", b"{{ messages[0].content }}<|im_end|>")(folder)
    compare_models(folder, teacher_folder)


def test_a_teacher_that_stops_at_more_ids_is_refused_though_a_config_names_all(
    student_folder: Path, tmp_path: Path
) -> None:
    """config.json counts only where generation_config.json names none."""
    student = shutil.copytree(student_folder, tmp_path / "student")
    teacher = shutil.copytree(student_folder, tmp_path / "teacher")
    for folder, ids in ((student, [2]), (teacher, [2, 3])):
        edit_json("config.json", eos_token_id=[2, 3])(folder)
        edit_json("generation_config.json", eos_token_id=ids)(folder)
    with pytest.raises(UserError, match=r"\[2\] of the student and \[2, 3\] of the"):
        compare_models(student, teacher)
    edit_json("config.json", eos_token_id=7)(student)
    edit_json("generation_config.json", eos_token_id=[3, 2])(student)
    compare_models(student, teacher)


def test_embeddings_of_different_lengths_fit(
    folder: Path, teacher_folder: Path
) -> None:
    edit_json("config.json", vocab_size=128)(folder)
    compare_models(folder, teacher_folder)
    compare_models(teacher_folder, folder)
