"""Rows as other trainers and published data hold them load as they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from topd_ray.errors import UserError
from topd_ray.prompts import PromptRecord, Turn, read_records

QUESTION = "what is 1 + 1 ?"
USER = {"role": "user", "content": QUESTION}


def records(tmp_path: Path, *rows: object, **columns: str | None) -> list[PromptRecord]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named: Any = columns
    return read_records(path, columns=named)


FOREIGN: dict[str, tuple[dict[str, Any], dict[str, str | None]]] = {
    "verl": (
        {
            "data_source": "math_dapo",
            "prompt": [USER],
            "reward_model": {"ground_truth": "2", "style": "rule"},
            "extra_info": {"index": "0"},
        },
        {"answer": "2"},
    ),
    "TRL, conversational prompt": ({"prompt": [USER]}, {}),
    "TRL, prompt and completion": (
        {"prompt": [USER], "completion": [{"role": "assistant", "content": "2"}]},
        {"response": "2"},
    ),
    "TRL, text": ({"prompt": QUESTION, "completion": " 2"}, {"response": "2"}),
    "OpenRLHF": ({"input": QUESTION, "label": "2"}, {"answer": "2"}),
    "GSM8K": (
        {"question": QUESTION, "answer": "1 + 1 is <<1+1=2>>2\n#### 1,234"},
        {"answer": "1234", "reference": "1 + 1 is <<1+1=2>>2"},
    ),
    "GSM8K without the work": (
        {"question": QUESTION, "answer": "#### 2"},
        {"answer": "2"},
    ),
    "DeepScaleR": (
        {"problem": QUESTION, "answer": "2", "solution": "it is 2"},
        {"answer": "2", "reference": "it is 2"},
    ),
    "a list of one answer": ({"prompt": QUESTION, "answer": ["2"]}, {"answer": "2"}),
    "an empty list": ({"prompt": QUESTION, "answer": []}, {}),
    "content parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is "},
                        {"type": "text", "text": "1 + 1 ?"},
                    ],
                }
            ]
        },
        {},
    ),
    "capitals": ({"messages": [{"role": "User", "content": QUESTION}]}, {}),
    "no system prompt": (
        {"messages": [{"role": "system", "content": None}, USER]},
        {},
    ),
    "keys of the other form": ({"conversations": [USER]}, {}),
    "columns of one meaning that agree": (
        {"prompt": QUESTION, "answer": 2, "label": "2"},
        {"answer": "2"},
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_row_of_another_trainer_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    row, fields = FOREIGN[name]
    fields = {"answer": None} | fields
    assert records(tmp_path, row) == [
        PromptRecord(prompt_id="rows-000001", turns=(Turn("user", QUESTION),), **fields)
    ]


def test_a_developer_and_a_system_column_are_the_system(tmp_path: Path) -> None:
    turns = (Turn("system", "be brief"), Turn("user", QUESTION))
    developer = {"messages": [{"role": "developer", "content": "be brief"}, USER]}
    column = {
        "system": "be brief",
        "conversations": [{"from": "human", "value": QUESTION}],
    }
    for row in (developer, column, developer | {"system": "be brief"}):
        (record,) = records(tmp_path, row)
        assert record.turns == turns
    with pytest.raises(UserError, match="system: 'be long' beside another system turn"):
        records(tmp_path, developer | {"system": "be long"})


def test_a_file_that_is_one_array_is_read_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for indent in (None, 2):
        rows = [{"prompt": "a"}, {"prompt": "b"}]
        path.write_text("\ufeff \n" + json.dumps(rows, indent=indent))
        assert [r.prompt_id for r in read_records(path)] == [
            "rows-000001",
            "rows-000002",
        ]
    path.write_text('[{"prompt": "a"}, 5]')
    with pytest.raises(UserError, match="row 2: expected an object"):
        read_records(path)
    path.write_text('[{"prompt": "a"}')
    with pytest.raises(UserError, match=r"begins with `\[`, but is no JSON array"):
        read_records(path)


def test_columns_of_any_name_are_found_by_the_mapping(tmp_path: Path) -> None:
    row = {
        "prompt": "not this",
        "task": {"text": QUESTION, "gold": 2},
        "a.b": "it is 2",
        "id": {"$oid": 1},
        "answer": True,
    }
    (record,) = records(
        tmp_path,
        row,
        prompt="task.text",
        answer="task.gold",
        reference="a.b",
        prompt_id=None,
    )
    assert record == PromptRecord(
        prompt_id="rows-000001",
        turns=(Turn("user", QUESTION),),
        answer="2",
        reference="it is 2",
    )


AMBIGUOUS: list[tuple[dict[str, Any], str]] = [
    (
        {"instruction": "add", "input": "1 1"},
        "any of `instruction`, `input` could be the prompt",
    ),
    (
        {"prompt": "?", "answer": "2", "label": "3"},
        "answer='2', label='3' could each be the answer; set prompts.columns.answer",
    ),
    (
        {"prompt": "?", "response": "2", "completion": "3"},
        "response='2', completion='3' could each be the response",
    ),
    (
        {"prompt": "?", "completion": [{"role": "user", "content": "2"}]},
        "completion: expected turns of the assistant alone, found one of user",
    ),
    (
        {"prompt": "?", "label": True},
        "label: expected text or a number, found True; prompts.columns.answer",
    ),
]


@pytest.mark.parametrize(("row", "message"), AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_refused_with_the_field_that_decides(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        records(tmp_path, row)
    assert message in str(caught.value)


def test_a_mapped_column_that_a_row_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"line 2: prompts\.columns\.answer=gold: no such column; found the keys",
    ):
        records(tmp_path, {"prompt": "?", "gold": None}, {"prompt": "?"}, answer="gold")


LOST: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"name": "f"}], "messages": [USER]}, "tools: tools are not rendered"),
    (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [{}]},
                USER,
            ]
        },
        "messages[1].tool_calls: calls of tools are not rendered",
    ),
    (
        {"messages": [USER, {"role": "tool", "content": "3"}]},
        "found 'tool'; answers of tools are not rendered: make them turns of the user",
    ),
    (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "2", "reasoning_content": "1 + 1"},
            ]
        },
        "messages[1].reasoning_content: only `content` is rendered",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "a run reads text only",
    ),
]


@pytest.mark.parametrize(("row", "message"), LOST)
def test_what_no_template_would_be_given_is_refused_rather_than_lost(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        records(tmp_path, row)
    assert message in str(caught.value)
    empty = {"prompt": QUESTION, "tools": [], "messages": None}
    assert records(tmp_path, empty)[0].turns == (Turn("user", QUESTION),)
