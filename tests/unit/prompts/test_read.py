"""Every data form becomes records; every malformed row becomes one line that names its
place.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from topd_ray.errors import UserError
from topd_ray.prompts import PromptRecord, Turn, read_records

QUESTION = (Turn(role="user", text="2 + 2?"),)


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, *rows: dict[str, Any]) -> Path:
    parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def save_dataset(path: Path, *rows: dict[str, Any]) -> Path:
    import datasets

    datasets.Dataset.from_list(list(rows)).save_to_disk(path)
    return path


WRITERS = {
    "data.jsonl": write_jsonl,
    "data.parquet": write_parquet,
    "data": save_dataset,
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_rows_read_the_same_from_every_kind_of_file(
    name: str, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "2 + 2?", "answer": "4", "prompt_id": "a"},
        {"prompt": "3 + 3?", "answer": None, "prompt_id": None},
    ]
    assert read_records(WRITERS[name](tmp_path / name, *rows)) == [
        PromptRecord(prompt_id="a", turns=QUESTION, answer="4"),
        PromptRecord(
            prompt_id="data-000002",
            turns=(Turn(role="user", text="3 + 3?"),),
            answer=None,
        ),
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_turns_survive_every_kind_of_file(name: str, tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
    ]
    path = WRITERS[name](tmp_path / name, {"messages": messages})
    assert read_records(path)[0].turns == (
        Turn(role="system", text="Be brief."),
        *QUESTION,
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?"},
        {"messages": [{"role": "user", "content": "2 + 2?"}]},
        {"conversations": [{"from": "human", "value": "2 + 2?"}]},
        {"conversations": [{"from": "user", "value": "2 + 2?"}]},
        {"messages": [{"role": "user", "content": "2 + 2?"}], "prompt": "another"},
        {"conversations": [{"from": "user", "value": "2 + 2?"}], "messages": None},
        {
            "conversations": [
                {"from": "human", "value": "2 + 2?"},
                {"from": "gpt", "value": "4"},
                {"from": "gpt", "value": "It is 4."},
            ]
        },
    ],
)
def test_every_form_of_one_question_is_the_same_record(
    row: object, tmp_path: Path
) -> None:
    assert read_records(write_jsonl(tmp_path / "q.jsonl", row))[0].turns == QUESTION


def test_an_assistant_turn_in_the_middle_stays(tmp_path: Path) -> None:
    roles = ["user", "assistant", "user", "assistant"]
    row = {
        "messages": [{"role": role, "content": str(i)} for i, role in enumerate(roles)]
    }
    turns = read_records(write_jsonl(tmp_path / "q.jsonl", row))[0].turns
    assert [turn.text for turn in turns] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("  1/2 ", "1/2"),
        (4, "4"),
        (-3, "-3"),
        (3.0, "3"),
        (0.5, "0.5"),
        (None, None),
        (" ", None),
    ],
)
def test_answers_are_text_or_nothing(
    answer: object, read: str | None, tmp_path: Path
) -> None:
    row = {"prompt": "?", "answer": answer}
    assert read_records(write_jsonl(tmp_path / "q.jsonl", row))[0].answer == read


def test_ids_may_be_numbers_and_default_to_stem_and_line(tmp_path: Path) -> None:
    path = tmp_path / "math.jsonl"
    path.write_text('\ufeff{"prompt": "a", "id": 7}\n\n{"prompt": "b"}\r\n')
    assert [record.prompt_id for record in read_records(path)] == ["7", "math-000003"]


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        ({"reference": " by hand \n"}, "by hand"),
        ({"solution": "by hand"}, "by hand"),
        ({"reference": "by hand", "solution": "another"}, "by hand"),
        ({"reference": None, "solution": "by hand"}, "by hand"),
        ({"reference": " ", "solution": ""}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("name", WRITERS)
def test_a_reference_solution_goes_by_either_name(
    fields: dict[str, Any], read: str | None, name: str, tmp_path: Path
) -> None:
    path = WRITERS[name](tmp_path / name, {"prompt": "?"} | fields)
    assert read_records(path)[0].reference == read


TURNS = [("user", "2 + 2?"), ("assistant", "4"), ("assistant", "It is 4.")]
MESSAGES = [{"role": role, "content": text} for role, text in TURNS]
SHAREGPT = [
    {"from": role.replace("assistant", "gpt"), "value": text} for role, text in TURNS
]


@pytest.mark.parametrize(
    ("row", "text", "ids"),
    [
        ({"prompt": "2 + 2?", "response": " 4 "}, "4", None),
        ({"prompt": "2 + 2?", "response_ids": [7, 0, 2]}, None, (7, 0, 2)),
        ({"prompt": "2 + 2?", "response": "4", "response_ids": [7]}, "4", (7,)),
        ({"messages": MESSAGES}, "4\n\nIt is 4.", None),
        ({"conversations": SHAREGPT}, "4\n\nIt is 4.", None),
        ({"messages": MESSAGES, "response": "four"}, "four", None),
        ({"messages": MESSAGES, "response": None}, "4\n\nIt is 4.", None),
        ({"prompt": "2 + 2?", "response": " ", "response_ids": []}, None, None),
        ({"prompt": "2 + 2?", "response": None, "response_ids": None}, None, None),
    ],
)
def test_a_given_response_is_read_in_every_shape_and_is_never_part_of_the_prompt(
    row: dict[str, Any], text: str | None, ids: tuple[int, ...] | None, tmp_path: Path
) -> None:
    for name, write in WRITERS.items():
        (record,) = read_records(write(tmp_path / name, row))
        assert (record.response, record.response_ids) == (text, ids), name
        assert record.turns == QUESTION


@pytest.mark.parametrize("reason", ["stop", "length", None])
@pytest.mark.parametrize("name", WRITERS)
def test_how_a_given_response_ended_is_read_from_every_kind_of_file(
    reason: str | None, name: str, tmp_path: Path
) -> None:
    row = {"prompt": "?", "response": "4", "finish_reason": reason}
    (record,) = read_records(WRITERS[name](tmp_path / name, row))
    assert record.finish_reason == reason


ROW_MISTAKES: list[tuple[object, str]] = [
    (
        [1, 2],
        "expected an object with `messages`, `conversations`, `prompt`, `question` or"
        " `problem`, found [1, 2]",
    ),
    ("text", "expected an object"),
    (
        {"text": "?"},
        "found the keys ['text']; set prompts.columns.prompt to the column that holds",
    ),
    ({}, "found the keys []"),
    ({"prompt": 5}, "prompt: expected text, found 5"),
    ({"prompt": [{"role": "user"}]}, "prompt[0].content: expected text, found None"),
    ({"prompt": "\ud800"}, "prompt: half a surrogate pair"),
    ({"messages": "hi"}, "messages: expected a list of turns, found 'hi'"),
    ({"messages": ["hi"]}, "messages[0]: expected an object with `role` and `content`"),
    (
        {"messages": [{"content": "hi"}]},
        "messages[0].role: expected one of system, developer, user",
    ),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "found 'tool'"),
    ({"messages": [{"role": ["user"], "content": "hi"}]}, "found ['user']"),
    (
        {"messages": [{"role": "user", "content": None}]},
        "messages[0].content: expected text",
    ),
    (
        {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
        'content[0]: expected {"type": "text"',
    ),
    ({"conversations": {"from": "human"}}, "conversations: expected a list of turns"),
    (
        {"conversations": [{"from": "bot", "value": "hi"}]},
        "conversations[0].from: expected one of",
    ),
    (
        {"messages": [{"role": "user", "content": "hi", "from": "human"}]},
        "messages[0]: holds both `role` and `from`",
    ),
    ({"prompt": "?", "answer": True}, "answer: expected text or a number, found True"),
    (
        {"prompt": "?", "answer": ["4", "four"]},
        "answer: expected one answer, found ['4', 'four']",
    ),
    (
        {"prompt": "?", "answer": float("nan")},
        "answer: expected text or a number, found nan",
    ),
    ({"prompt": "?", "answer": "\udfff"}, "answer: half a surrogate pair"),
    ({"prompt": "?", "reference": 4}, "reference: expected text, found 4"),
    ({"prompt": "?", "solution": ["4"]}, "solution: expected text, found ['4']"),
    ({"prompt": "?", "response": {"text": "4"}}, "response: expected text, found {"),
    (
        {"prompt": "?", "response_ids": "4"},
        "response_ids: expected a list of token ids",
    ),
    (
        {"prompt": "?", "response_ids": [1, -1]},
        "expected a list of token ids, found [1, -1]",
    ),
    (
        {"prompt": "?", "response_ids": [True]},
        "expected a list of token ids, found [True]",
    ),
    (
        {"prompt": "?", "response_ids": [1.5]},
        "expected a list of token ids, found [1.5]",
    ),
    (
        {"prompt": "?", "finish_reason": "tool_calls"},
        "finish_reason: expected stop or length, found 'tool_calls'",
    ),
    ({"prompt": "?", "finish_reason": ["stop"]}, "finish_reason: expected stop or"),
    ({"prompt": "?", "prompt_id": ""}, "prompt_id: expected printable text"),
    ({"prompt": "?", "prompt_id": "a\x1fb"}, "prompt_id: expected printable text"),
    ({"prompt": "?", "id": {"$oid": 1}}, "prompt_id: expected printable text"),
    ({"prompt": "?", "id": True}, "prompt_id: expected printable text"),
    ({"prompt": "?", "id": "first"}, "prompt_id 'first' was taken at line 1"),
]


@pytest.mark.parametrize(("row", "message"), ROW_MISTAKES)
def test_a_malformed_row_is_named_by_file_and_line(
    row: object, message: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "bad.jsonl", {"prompt": "fine", "id": "first"}, row)
    with pytest.raises(UserError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert message in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__, (
        "a second traceback"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"prompt": "a"',
            'expected one JSON object a line, found \'{"prompt": "a"\'',
        ),
        (b"[", "expected one JSON object a line"),
        (b"[" * 100_000, "expected one JSON object a line"),
        (b"9" * 10_000, "expected one JSON object a line"),
        (b"plain text " * 100, "..."),
        (b'{"prompt": "caf\xe9"}', "expected UTF-8, found b'\\xe9\"}'"),
        (b"\xff\xfe{\x00", "expected UTF-8"),
        (b"\x00", "expected one JSON object a line"),
    ],
)
def test_a_line_that_is_no_json_is_named_and_shortened(
    line: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n' + line)
    with pytest.raises(UserError) as caught:
        read_records(path)
    assert f"{path}, line 2: " in str(caught.value)
    assert message in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


def test_a_missing_file_and_an_empty_one_say_so(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"none\.jsonl: no such file; expected JSONL, JSON, Parquet"
    ):
        read_records(tmp_path / "none.jsonl")
    for name in ("empty.jsonl", "empty.parquet"):
        (tmp_path / name).touch()
        with pytest.raises(
            UserError, match=rf"{name}: (holds no prompts|not readable as Parquet)"
        ):
            read_records(tmp_path / name)


def test_truncated_parquet_is_one_line(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "data.parquet", {"prompt": "a" * 1000})
    whole = path.read_bytes()
    for size in (3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"data\.parquet: not readable as Parquet"):
            read_records(path)


def test_bytes_that_are_no_text_in_parquet_are_one_line(tmp_path: Path) -> None:
    column = pa.StringArray.from_buffers(
        1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")
    )
    parquet.write_table(pa.table({"prompt": column}), tmp_path / "data.parquet")
    with pytest.raises(UserError, match=r"data\.parquet, after row 0: expected UTF-8"):
        read_records(tmp_path / "data.parquet")


def test_a_malformed_parquet_row_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "data.parquet", {"prompt": "a"}, {"prompt": None})
    with pytest.raises(UserError, match=r"data\.parquet, row 2: expected `messages`"):
        read_records(path)


def test_a_folder_that_is_no_dataset_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"`datasets.save_to_disk`, found no state\.json"
    ):
        read_records(tmp_path)


def test_of_several_splits_one_must_be_named(tmp_path: Path) -> None:
    import datasets

    split = datasets.Dataset.from_list([{"prompt": "a"}])
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(
        tmp_path / "data"
    )
    with pytest.raises(
        UserError, match=r"several splits \(test, train\); name the folder of one"
    ):
        read_records(tmp_path / "data")
    assert len(read_records(tmp_path / "data" / "train")) == 1


@pytest.mark.parametrize("broken", ["state.json", "dataset_info.json", "arrow"])
def test_a_broken_dataset_folder_is_one_line(broken: str, tmp_path: Path) -> None:
    path = save_dataset(tmp_path / "data", {"prompt": "a" * 1000})
    target = next(path.glob("*.arrow")) if broken == "arrow" else path / broken
    target.write_bytes(target.read_bytes()[: 20 if broken == "arrow" else 1])
    with pytest.raises(UserError, match="data: not readable as a dataset"):
        read_records(path)
