"""`topd data openthoughts3` on a small Parquet file of the data set's columns."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.runs import topd
from topd_ray.prompts import read_records


def write_source(path: Path, rows: int = 12) -> Path:
    """Two of three rows are of the math part; each question comes twice in a row."""
    domains = ["math" if number % 3 else "code" for number in range(rows)]
    questions = [f"What is {number // 3} + 1?" for number in range(rows)]
    table = pa.table(
        {
            "difficulty": pa.array([7] * rows, pa.int64()),
            "source": ["ai2-adapt-dev/openmath-2-math"] * rows,
            "domain": domains,
            "conversations": [
                [
                    {"from": "human", "value": question},
                    {"from": "gpt", "value": "<think>…</think> 2"},
                ]
                for question in questions
            ],
        }
    )
    parquet.write_table(table, path, row_group_size=4)
    return path


def write(out: Path, source: Path | str, start: int, stop: int):
    options = ("--start", str(start), "--stop", str(stop), "--source", str(source))
    return topd("data", "openthoughts3", *options, out)


def test_rows_of_the_math_part_become_prompts_in_their_order(tmp_path):
    source = write_source(tmp_path / "train.parquet")
    out = tmp_path / "data" / "prompts.jsonl"
    done = write(out, source, 2, 6)
    assert done.code == 0, done.output
    assert "4 prompts, 2 different questions" in done.output.replace("\n", "")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt_id"][-6:] for row in rows] == [f"{i:06d}" for i in range(2, 6)]
    texts = [row["messages"][0]["content"] for row in rows]
    assert texts == ["What is 1 + 1?"] * 2 + ["What is 2 + 1?"] * 2
    records = read_records(out)
    assert [len(record.turns) for record in records] == [1] * 4
    assert all(record.response is None for record in records)


def test_files_of_a_folder_are_read_in_their_order(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_source(folder / "train-00000-of-00002.parquet", rows=3)
    write_source(folder / "train-00001-of-00002.parquet")
    done = write(tmp_path / "out.jsonl", folder, 1, 4)
    assert done.code == 0, done.output
    ids = [
        json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()
    ]
    texts = [row["messages"][0]["content"] for row in ids]
    assert texts == ["What is 0 + 1?"] * 3


@pytest.mark.parametrize(
    ("start", "stop", "why"),
    [
        (6, 6, "no row is between them"),
        (4, 99, "has 4 rows of the domain math from --start 4 on"),
    ],
)
def test_a_range_that_is_not_there_is_refused(start, stop, why, tmp_path):
    source = write_source(tmp_path / "train.parquet")
    done = write(tmp_path / "out.jsonl", source, start, stop)
    assert done.code == 2
    assert why in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.parquet"]


def test_a_file_that_exists_stays_as_it_is(tmp_path):
    source = write_source(tmp_path / "train.parquet")
    done = write(source, source, 0, 1)
    assert done.code == 2
    assert "exists; name another file" in done.output


def test_other_columns_are_named(tmp_path):
    source = tmp_path / "other.parquet"
    parquet.write_table(pa.table({"problem": ["1 + 1"]}), source)
    done = write(tmp_path / "out.jsonl", source, 0, 1)
    assert done.code == 2
    assert "has no column domain, conversations; found problem" in done.output


def test_a_data_set_that_cannot_be_reached_is_a_users_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)  # between its retries
    done = write(tmp_path / "out.jsonl", "owner/name", 0, 1)
    assert done.code == 2, done.output
    assert "--source owner/name" in done.output
