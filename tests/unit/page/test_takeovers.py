"""A takeover run on the page: where the forks are, and how their rollouts ended."""

import json
import math
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.synthetic_run import WORLD
from topd_ray.page.report import write_report
from topd_ray.page.run_page import RunPage
from topd_ray.page.tokens import TokenTexts
from topd_ray.records.open_run import open_run

STEP = 2


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [
        row
        for file in sorted((run / "rollouts").glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(WORLD / "student")


def is_right(row: dict[str, Any], ids: list[int]) -> bool:
    """The slow oracle: the last digit in a box equals the answer."""
    problems = (WORLD / "train.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {
        problem["prompt_id"]: problem["answer"] for problem in map(json.loads, problems)
    }
    words = tokenizer().decode(ids).split()
    boxes = [place for place, word in enumerate(words) if word == r"\boxed{"]
    return bool(boxes) and words[boxes[-1] + 1] == answers[row["prompt_id"]]


def test_the_figures_are_those_of_the_recorded_rollouts(taken_over: Path) -> None:
    rows = rows_of(taken_over)
    taken = [row for row in rows if row["takeover_position"] is not None]
    alone = [row for row in rows if row["takeover_position"] is None]
    assert taken
    found = RunPage(open_run(taken_over)).values()["takeovers"]
    assert (found["num_rollouts"], found["num_taken"]) == (len(rows), len(taken))
    ends = {row["label"]: row for row in found["ends"]}
    spliced = [
        row["response_ids"][: row["takeover_position"]] + row["takeover_ids"]
        for row in taken
    ]
    for label, expected in (
        ("left alone", [is_right(row, row["response_ids"]) for row in alone]),
        ("own end", [is_right(row, row["response_ids"]) for row in taken]),
        (
            "teacher's end",
            [is_right(row, ids) for row, ids in zip(taken, spliced, strict=True)],
        ),
    ):
        if expected:
            assert ends[label]["count"] == len(expected)
            assert ends[label]["share"] == pytest.approx(np.mean(expected)), label
        else:
            assert label not in ends
    positions = [row["takeover_position"] for row in taken]
    assert found["positions"]["median"] == np.median(positions)
    assert sum(found["positions"]["counts"]) == len(taken)
    assert found["positions"]["edges"][-1] > max(positions)
    assert sum(kind["count"] for kind in found["kinds"]) == len(taken)
    digits = found["kinds"][0]
    shares = [
        math.exp(row["logq"][row["takeover_position"]])
        for row in taken
        if tokenizer().decode(row["response_ids"][row["takeover_position"]]).isdigit()
    ]
    assert (digits["name"], digits["count"]) == ("digits", len(shares))
    assert digits["teacher"] == pytest.approx(np.median(shares), rel=1e-5)
    most = found["words"][0]
    pairs = [
        (row["response_ids"][row["takeover_position"]], row["takeover_ids"][0])
        for row in taken
    ]
    assert most["count"] == max(pairs.count(pair) for pair in pairs)


def test_a_run_of_takeovers_misses_nothing(taken_over: Path, tmp_path: Path) -> None:
    run = copytree(taken_over, tmp_path / "run")
    assert write_report(run).is_file()
    values = RunPage(open_run(run)).values()
    assert values["missing"] == []
    assert values["distributions"] is None
    assert "Taken over" in {tile["label"] for tile in values["tiles"]}


def test_a_response_that_was_stopped_is_neither_right_nor_wrong(
    taken_over: Path, tmp_path: Path
) -> None:
    run = copytree(taken_over, tmp_path / "run")
    for file in (run / "rollouts").glob("*.parquet"):
        rows = pq.read_table(file).to_pylist()
        for row in rows:
            if row["takeover_position"] is not None:
                row["finish_reason"] = "cut"
                del row["response_ids"][row["takeover_position"] + 1 :]
        table = pa.Table.from_pylist(rows, schema=pq.read_schema(file))
        pq.write_table(table, file)
    found = RunPage(open_run(run)).values()["takeovers"]
    assert "own end" not in {row["label"] for row in found["ends"]}
    assert "teacher's end" in {row["label"] for row in found["ends"]}


def test_steps_that_a_run_does_again_are_counted_once(
    taken_over: Path, tmp_path: Path
) -> None:
    run = copytree(taken_over, tmp_path / "run")
    page = RunPage(open_run(run))
    before = page.values()["takeovers"]
    (run / "rollouts" / f"step_{STEP:06d}.parquet").unlink()
    page.again()
    after = page.values()["takeovers"]
    assert after["num_rollouts"] < before["num_rollouts"]
    assert after == RunPage(open_run(run)).values()["takeovers"]


@pytest.mark.parametrize(
    ("messages", "question"),
    [
        ([{"role": "user", "content": "what is 1 + 2 ?"}], "what is 1 + 2 ?"),
        ([{"role": "user", "content": "user is 1 + 2 ?"}], "user is 1 + 2 ?"),
        (
            [
                {"role": "user", "content": "what is 4 * 2 modulo 10 ?"},
                {"role": "assistant", "content": "so the answer is 8 ."},
                {"role": "user", "content": "what is 1 + 2 ?"},
            ],
            "what is 1 + 2 ?",
        ),
    ],
)
def test_a_question_is_the_last_message(
    messages: list[dict[str, str]], question: str
) -> None:
    spelling = tokenizer()
    ids = spelling.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert TokenTexts(spelling).question(np.array(ids)) == question


def test_a_prompt_without_a_template_is_its_own_question() -> None:
    ids = tokenizer()("what is 1 + 2 ?")["input_ids"]
    assert TokenTexts(tokenizer()).question(np.array(ids)) == "what is 1 + 2 ?"
    assert TokenTexts(None).question(np.array([5, 6])) == "[5] [6]"
