"""Ids of the tokenizer: each needs a row, and a row needs no id."""

import json
from pathlib import Path

import pytest

from tests.tiny import EOS_ID, VOCAB, pad_model
from tests.unit.models.edits import edit_json
from topd_ray.errors import UserError
from topd_ray.models.architecture import check_tensors
from topd_ray.models.facts import read_facts
from topd_ray.models.stop_ids import eos_ids
from topd_ray.models.vocabulary import check_vocabulary, num_ids


def add_token(folder: Path, token_id: int) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append({"id": token_id, "content": "<|tool|>"})
    path.write_text(json.dumps(tokenizer))


def check(folder: Path) -> None:
    check_vocabulary(folder, read_facts(folder), ends=eos_ids(folder), role="teacher")


def test_the_ids_are_those_of_the_tokenizer_however_long_the_embedding_is(
    student_folder: Path, tmp_path: Path
) -> None:
    padded = pad_model(student_folder, tmp_path / "padded", rows=24)
    assert num_ids(student_folder) == num_ids(padded) == len(VOCAB)
    assert read_facts(padded).vocab_size == len(VOCAB) + 24
    check(student_folder)
    check(padded)
    assert check_tensors(padded, role="student") == []


def test_a_tokenizer_longer_than_the_embedding_is_refused_with_both_numbers(
    folder: Path,
) -> None:
    add_token(folder, len(VOCAB))
    message = r"teacher: .*ids up to 64 \('<\|tool\|>'\), but the embedding has 64 rows"
    with pytest.raises(UserError, match=message):
        check(folder)


def test_an_added_token_in_the_padding_is_an_id(
    student_folder: Path, tmp_path: Path
) -> None:
    padded = pad_model(student_folder, tmp_path / "padded", rows=24)
    add_token(padded, len(VOCAB) + 3)
    check(padded)
    assert num_ids(padded) == len(VOCAB) + 4


def test_an_eos_id_that_no_token_has_is_refused(folder: Path) -> None:
    edit_json("generation_config.json", eos_token_id=[EOS_ID, 90])(folder)
    with pytest.raises(UserError, match="eos_token_id 90 is no id of its tokenizer"):
        check(folder)


def test_a_tokenizer_without_tokens_is_refused(folder: Path) -> None:
    edit_json("tokenizer.json", model={"vocab": {}}, added_tokens=[])(folder)
    with pytest.raises(UserError, match=r"tokenizer\.json: holds no tokens"):
        num_ids(folder)
