"""Responses that came with the data, as a rollout would have brought them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import EOS_ID, VOCAB
from topd_ray.contexts import ChatTemplate
from topd_ray.errors import UserError
from topd_ray.prompts import PromptRecord, ResponseReader, Turn
from topd_ray.prompts.given import GivenResponse


def record(**fields: Any) -> PromptRecord:
    return PromptRecord(
        prompt_id="a", turns=(Turn(role="user", text="1"),), answer=None, **fields
    )


@pytest.fixture(scope="module")
def reader(student_folder: Path) -> ResponseReader:
    return ResponseReader(ChatTemplate(student_folder), max_tokens=4)


def read(reader: ResponseReader, **fields: Any) -> GivenResponse:
    response = reader.read(record(**fields))
    assert response is not None
    assert response.token_ids_N.dtype == np.int32
    return response


def ids(reader: ResponseReader, **fields: Any) -> list[int]:
    token_ids: list[int] = read(reader, **fields).token_ids_N.tolist()
    return token_ids


def test_text_ends_with_eos_exactly_once(reader: ResponseReader) -> None:
    expected = [VOCAB.index("w1"), VOCAB.index("2"), EOS_ID]
    assert ids(reader, response="w1 2") == expected
    assert ids(reader, response="w1 2 <|im_end|>") == expected
    assert read(reader, response="w1 2").finish_reason == "stop"


def test_text_that_its_row_calls_truncated_gets_no_eos(reader: ResponseReader) -> None:
    response = read(reader, response="w1 2", finish_reason="length")
    assert response.token_ids_N.tolist() == [VOCAB.index("w1"), VOCAB.index("2")]
    assert response.finish_reason == "length"


@pytest.mark.parametrize(
    ("token_ids", "said", "expected", "finish_reason"),
    [
        ((7, 8), None, [7, 8], "length"),
        ((7, 8), "length", [7, 8], "length"),
        ((7, 8), "stop", [7, 8, EOS_ID], "stop"),
        ((7, EOS_ID), None, [7, EOS_ID], "stop"),
        ((7, EOS_ID), "stop", [7, EOS_ID], "stop"),
        ((7, EOS_ID), "length", [7, EOS_ID], "length"),
        ((7, 8, 9, EOS_ID), None, [7, 8, 9, EOS_ID], "stop"),
        ((7, 8, 9, 6, EOS_ID), None, [7, 8, 9, 6], "length"),
        ((7, 8, 9, 6, EOS_ID), "stop", [7, 8, 9, 6], "length"),
        ((7, 8, 9, 6), "stop", [7, 8, 9, 6], "length"),
    ],
)
def test_ids_are_finished_where_they_end_in_eos_or_the_row_says_so(
    token_ids: tuple[int, ...],
    said: str | None,
    expected: list[int],
    finish_reason: str,
    reader: ResponseReader,
) -> None:
    response = read(reader, response_ids=token_ids, finish_reason=said)
    assert response.token_ids_N.tolist() == expected
    assert response.finish_reason == finish_reason


def test_a_record_without_a_response_has_none(reader: ResponseReader) -> None:
    assert reader.read(record()) is None


def test_ids_of_another_vocabulary_are_refused_by_name(
    reader: ResponseReader, student_folder: Path
) -> None:
    size = json.loads((student_folder / "config.json").read_text())["vocab_size"]
    assert ids(reader, response_ids=(size - 1,)) == [size - 1]
    with pytest.raises(
        UserError, match=rf"'a': response_ids holds {size}, .* another model's"
    ):
        reader.read(record(response_ids=(1, size)))


def test_text_ends_with_any_token_that_the_folder_names_and_needs_one(
    student_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(student_folder, tmp_path / "student")
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    reader = ResponseReader(ChatTemplate(folder), max_tokens=4)
    assert ids(reader, response="w1") == [VOCAB.index("w1"), EOS_ID]
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text()) | {"eos_token_id": None}
        (folder / name).write_text(json.dumps(values))
    with pytest.raises(UserError, match="names a token that ends a response"):
        ResponseReader(ChatTemplate(folder), max_tokens=4)


THINK = "{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"


def reader_behind(opened: str, folder: Path, **variables: object) -> ResponseReader:
    """Return a reader of responses to a template that opens a turn with `opened`."""
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }} <|im_end|> {% endfor %}{% if"
        " add_generation_prompt %}assistant " + opened + "{% endif %}"
    )
    return ResponseReader(ChatTemplate(folder, variables=variables), max_tokens=9)


@pytest.mark.parametrize(
    "given",
    [
        {"response": "<think>w1</think> 2"},
        {"response": "\n<think>\nw1\n</think> 2"},
    ],
)
def test_a_think_block_does_not_follow_the_one_that_the_prompt_has_closed(
    given: dict[str, Any], student_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(student_folder, tmp_path / "student")
    closed = reader_behind(THINK, folder)
    with pytest.raises(
        UserError, match=r"'a': its response begins with <think>.*enable_thinking: true"
    ):
        closed.read(record(**given))
    assert ids(closed, response="w1 2") == [VOCAB.index("w1"), VOCAB.index("2"), EOS_ID]


def test_a_think_block_that_the_prompt_has_opened_is_not_opened_again(
    student_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(student_folder, tmp_path / "student")
    opened = reader_behind(THINK, folder, enable_thinking=True)
    expected = ids(opened, response="w1 </think> 2")
    assert ids(opened, response="<think>\nw1 </think> 2") == expected
    # A prompt without a block leaves the response its own.
    plain = reader_behind("", folder)
    own = ids(plain, response="<think> w1 </think> 2")
    assert own == [VOCAB.index("<unk>"), *expected]


def test_ids_that_open_a_think_block_again_are_refused(
    student_folder: Path, tmp_path: Path
) -> None:
    """They cannot be cut where the text is, so the row is named."""
    folder = shutil.copytree(student_folder, tmp_path / "student")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    think_id = tokenizer["model"]["vocab"].pop("w47")
    tokenizer["model"]["vocab"]["<think>"] = think_id
    path.write_text(json.dumps(tokenizer))
    opened = reader_behind(THINK, folder, enable_thinking=True)
    with pytest.raises(UserError, match=r"'a': its response_ids begin with a think"):
        opened.read(record(response_ids=(think_id, 7)))
    closed = reader_behind(THINK, folder)
    with pytest.raises(UserError, match="its response begins with <think>"):
        closed.read(record(response_ids=(think_id, 7)))
    assert ids(closed, response_ids=(7, think_id)) == [7, think_id]
