"""Responses that came with the data, as a rollout would have brought them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import EOS_ID, VOCAB
from topd_ray.errors import UserError
from topd_ray.prompts import GivenResponses, PromptRecord, Turn


def record(**fields: Any) -> PromptRecord:
    return PromptRecord(
        prompt_id="a", turns=(Turn(role="user", text="1"),), answer=None, **fields
    )


@pytest.fixture(scope="module")
def given(student_folder: Path) -> GivenResponses:
    return GivenResponses(student_folder)


def read(given: GivenResponses, **fields: Any) -> list[int]:
    token_ids_N = given.token_ids(record(**fields))
    assert token_ids_N is not None
    assert token_ids_N.dtype == np.int32
    return [int(one) for one in token_ids_N]


def test_text_ends_with_eos_exactly_once(given: GivenResponses) -> None:
    expected = [VOCAB.index("w1"), VOCAB.index("2"), EOS_ID]
    assert read(given, response="w1 2") == expected
    assert read(given, response="w1 2 <|im_end|>") == expected


def test_token_ids_are_taken_as_they_are_even_without_eos(
    given: GivenResponses,
) -> None:
    assert read(given, response_ids=(7, 8)) == [7, 8]


def test_a_record_without_a_response_has_none(given: GivenResponses) -> None:
    assert given.token_ids(record()) is None


def test_ids_of_another_vocabulary_are_refused_by_name(
    given: GivenResponses, student_folder: Path
) -> None:
    size = json.loads((student_folder / "config.json").read_text())["vocab_size"]
    assert read(given, response_ids=(size - 1,)) == [size - 1]
    with pytest.raises(
        UserError, match=rf"'a': response_ids holds {size}, .* another model's"
    ):
        given.token_ids(record(response_ids=(1, size)))


def test_text_needs_a_tokenizer_that_can_end_it(
    student_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(student_folder, tmp_path / "student")
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    given = GivenResponses(folder)
    assert read(given, response_ids=(7,)) == [7]
    with pytest.raises(UserError, match="no eos_token"):
        given.token_ids(record(response="w1"))
