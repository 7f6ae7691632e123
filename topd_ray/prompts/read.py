"""Read JSONL, a JSON array, Parquet or a `save_to_disk` folder into records.

A malformed row is an error that names its place in the file.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from topd_ray.config import Column
from topd_ray.errors import UserError
from topd_ray.prompts.columns import FORMS, Columns
from topd_ray.prompts.record import PromptRecord, parse_row
from topd_ray.prompts.shown import RowError, shown

PARQUET_BATCH_ROWS = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_records(
    path: Path,
    *,
    columns: Mapping[Column, str | None] | None = None,
    field: str = "prompts.columns",
) -> list[PromptRecord]:
    """Return a record for every row of `path`, in file order.

    `columns` names columns as `prompts.columns` does; `field` names it in errors.
    Raises UserError with the file, the row, what was expected and what was found.
    """
    records: list[PromptRecord] = []
    first_place: dict[str, str] = {}
    names = Columns(columns or {}, field=field)
    for place, number, row in read_rows(path):
        try:
            record = parse_row(
                row, default_id=f"{path.stem}-{number:06d}", columns=names
            )
        except RowError as error:
            raise UserError(f"{path}, {place}: {error}") from None
        # `topd generate` resumes by the id, and a rewrite finds its prompt by it.
        earlier = first_place.setdefault(record.prompt_id, place)
        if earlier != place:
            raise UserError(
                f"{path}, {place}: prompt_id {shown(record.prompt_id)} was taken at"
                f" {earlier}; ids must be unique"
            )
        records.append(record)
    if not records:
        raise UserError(f"{path}: holds no prompts; expected rows with {FORMS}")
    return records


def read_rows(path: Path) -> Iterator[tuple[str, int, object]]:
    """Yield (place, number, row) in file order, e.g. ("line 7", 7, {...})."""
    if path.is_dir():
        return _dataset_rows(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; expected JSONL, JSON, Parquet or a"
            " `datasets.save_to_disk` folder"
        )
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    return _array_rows(path) if _is_array(path) else _jsonl_rows(path)


def _is_array(path: Path) -> bool:
    """Return whether the file is one JSON array: no line of JSONL begins with `[`."""
    try:
        with path.open("rb") as file:
            return file.read(64).removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] == b"["
    except OSError:
        return False  # named where the lines are read


def _array_rows(path: Path) -> Iterator[tuple[str, int, object]]:
    try:
        rows = json.loads(path.read_bytes().removeprefix(_BYTE_ORDER_MARK).decode())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: begins with `[`, but is no JSON array ({_one_line(error)});"
            " expected an array of rows, or one JSON object a line"
        ) from None
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", number, row


def _jsonl_rows(path: Path) -> Iterator[tuple[str, int, object]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                # Some editors put a byte order mark in front of the first line.
                line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if line.strip():
                    yield (
                        f"line {number}",
                        number,
                        _parse_json(line, f"{path}, line {number}"),
                    )
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror}") from None


def _parse_json(line: bytes, where: str) -> object:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: expected UTF-8, found"
            f" {shown(line[error.start : error.start + 8])} at byte {error.start};"
            " convert the file"
        ) from None
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        text = line.decode().strip()
        raise UserError(
            f"{where}: expected one JSON object a line, found {shown(text)}"
        ) from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, int, object]]:
    # Imported here, since JSONL needs none of it.
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            # In batches: a whole table of Python objects takes many times its size.
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
            f"{path}: not readable as Parquet (truncated?): {shown(_one_line(error))}"
        ) from None


def _dataset_rows(path: Path) -> Iterator[tuple[str, int, object]]:
    """Yield the rows of a `Dataset.save_to_disk` folder.

    Raises UserError for a folder of several splits: its user must name one of them.
    """
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(p.parent.name for p in path.glob("*/state.json")))
        raise UserError(
            f"{path}: holds several splits ({splits}); name the folder of one"
        )
    if not (path / "state.json").is_file():
        raise UserError(
            f"{path}: expected a folder written by `datasets.save_to_disk`, found no"
            " state.json"
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
            f"{path}: not readable as a dataset (truncated?): {shown(_one_line(error))}"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
