"""JSONL, Parquet or a `save_to_disk` folder -> records; every malformed row is named by its place.

A row holds `messages` ([{role, content}]), ShareGPT `conversations` ([{from, value}]) or a plain
`prompt`; the first of them that is there counts. Assistant turns at the end are dropped: the
student writes its own.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topd_ray.errors import UserError

FORMS = "`messages`, `conversations` or `prompt`"
ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant"}
PARQUET_BATCH_ROWS = 1024
SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRecord:
    """One row of the data, before the chat template."""

    prompt_id: str
    turns: tuple[Turn, ...]
    answer: str | None


class RowError(Exception):
    """What is wrong with one row; `read_records` adds where."""


def read_records(path: Path) -> list[PromptRecord]:
    """Every row of `path`, in file order. Raises UserError naming file, row, wanted and found."""
    records: list[PromptRecord] = []
    first_place: dict[str, str] = {}
    for place, number, row in _rows(path):
        try:
            record = parse_row(row, default_id=f"{path.stem}-{number:06d}")
        except RowError as error:
            raise UserError(f"{path}, {place}: {error}") from None
        earlier = first_place.setdefault(record.prompt_id, place)
        if earlier != place:
            raise UserError(
                f"{path}, {place}: prompt_id {_shown(record.prompt_id)} was taken at {earlier}; "
                "ids must be unique"
            )
        records.append(record)
    if not records:
        raise UserError(f"{path}: holds no prompts; expected rows with {FORMS}")
    return records


def parse_row(row: object, *, default_id: str) -> PromptRecord:
    """One row's record. Raises RowError."""
    if not isinstance(row, dict):
        raise RowError(f"expected an object with {FORMS}, found {_shown(row)}")
    turns = _turns(row)
    while turns and turns[-1].role == "assistant":
        turns.pop()
    return PromptRecord(
        prompt_id=_prompt_id(row, default_id), turns=tuple(turns), answer=_answer(row.get("answer"))
    )


def _turns(row: dict[str, Any]) -> list[Turn]:
    if row.get("messages") is not None:
        return _parse_turns(row["messages"], "messages", "role", "content", ROLES)
    if row.get("conversations") is not None:
        return _parse_turns(row["conversations"], "conversations", "from", "value", SHAREGPT_ROLES)
    if row.get("prompt") is None:
        raise RowError(f"expected {FORMS}, found the keys {_shown(sorted(map(str, row)))}")
    if isinstance(row["prompt"], list):
        raise RowError(
            f"prompt: expected text, found {_shown(row['prompt'])}; put turns under `messages`"
        )
    return [Turn(role="user", text=_text(row["prompt"], "prompt"))]


def _parse_turns(
    values: object, field: str, role_key: str, text_key: str, roles: dict[str, str]
) -> list[Turn]:
    if not isinstance(values, list):
        raise RowError(f"{field}: expected a list of turns, found {_shown(values)}")
    turns = []
    for index, value in enumerate(values):
        name = f"{field}[{index}]"
        if not isinstance(value, dict):
            raise RowError(
                f"{name}: expected an object with `{role_key}` and `{text_key}`, "
                f"found {_shown(value)}"
            )
        role = value.get(role_key)
        if not isinstance(role, str) or role not in roles:
            raise RowError(
                f"{name}.{role_key}: expected one of {', '.join(roles)}, found {_shown(role)}"
            )
        text = _text(value.get(text_key), f"{name}.{text_key}")
        turns.append(Turn(role=roles[role], text=text))
    return turns


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{field}: expected text, found {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(
            f"{field}: half a surrogate pair in {_shown(value)}; fix its encoding"
        ) from None
    return value


def _prompt_id(row: dict[str, Any], default_id: str) -> str:
    value = next((row[key] for key in ("prompt_id", "id") if row.get(key) is not None), default_id)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise RowError(
            f"prompt_id: expected printable text or a whole number, found {_shown(value)}"
        )
    return value


def _answer(value: object) -> str | None:
    """Text or a finite number; a whole float such as 3.0 reads "3"; blank text is no answer."""
    if value is None:
        return None
    if isinstance(value, str):
        return _text(value, "answer").strip() or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    raise RowError(f"answer: expected text or a number, found {_shown(value)}")


def _rows(path: Path) -> Iterator[tuple[str, int, object]]:
    """("line 7", 7, row) one after another."""
    if path.is_dir():
        return _dataset_rows(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; expected JSONL, Parquet or a `datasets.save_to_disk` folder"
        )
    return _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, int, object]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield f"line {number}", number, _parse_json(line, f"{path}, line {number}")
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror}") from None


def _parse_json(line: bytes, where: str) -> object:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: expected UTF-8, found {_shown(line[error.start : error.start + 8])} at byte "
            f"{error.start}; convert the file"
        ) from None
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        text = line.decode().strip()
        raise UserError(f"{where}: expected one JSON object a line, found {_shown(text)}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, int, object]]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", number, row
    except UnicodeDecodeError:
        raise UserError(
            f"{path}, after row {number}: expected UTF-8 text, found other bytes"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not readable as Parquet (truncated?): {_shown(_one_line(error))}"
        ) from None


def _dataset_rows(path: Path) -> Iterator[tuple[str, int, object]]:
    """Rows of `Dataset.save_to_disk`; of several splits one must be named."""
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(p.parent.name for p in path.glob("*/state.json")))
        raise UserError(f"{path}: holds several splits ({splits}); name the folder of one")
    if not (path / "state.json").is_file():
        raise UserError(
            f"{path}: expected a folder written by `datasets.save_to_disk`, found no state.json"
        )
    import datasets
    import pyarrow as pa

    number = 0
    try:
        for number, row in enumerate(datasets.load_from_disk(str(path)), start=1):
            yield f"row {number}", number, row
    except UnicodeDecodeError:
        raise UserError(
            f"{path}, after row {number}: expected UTF-8 text, found other bytes"
        ) from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not readable as a dataset (truncated?): {_shown(_one_line(error))}"
        ) from None


def _shown(value: object) -> str:
    """`value` as Python writes it, shortened; lone surrogates come out escaped."""
    text = repr(value[:SHOWN_CHARS] if isinstance(value, str | bytes) else value)
    if len(text) > SHOWN_CHARS or (isinstance(value, str | bytes) and len(value) > SHOWN_CHARS):
        return f"{text[:SHOWN_CHARS]}..."
    return text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
