"""`topd data`: a public data set -> the prompt file that a config names."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from topd_ray.errors import UserError, first_line

_DOMAIN = "math"
_ASKED_BY = ("human", "user")
"""Names of the side that asks, in `conversations`."""
_COLUMNS = ("domain", "conversations")


def write_openthoughts3(out: Path, source: str, *, start: int, stop: int) -> str:
    """Write rows `start` to `stop` of the math part as prompts (JSONL).

    A row is the question alone: the answers of the data set are another model's. Rows
    are read as a stream, from the first on, so only the files up to `stop` are
    downloaded.

    Args:
        out: The file, which must not exist yet; it appears whole or not at all.
        source: Name of the data set on the hub, or a Parquet file or folder of its
            columns `domain` and `conversations`.
        start: Position in the math part, from 0.
        stop: Position behind the last row.

    Returns:
        A line with the number of rows, and of different questions among them: the data
        set has several answers to a question, each a row.

    Raises:
        UserError: The range is empty, the file exists, the source cannot be read, or it
            has fewer rows.
    """
    if stop <= start:
        raise UserError(f"--start {start} --stop {stop}: no row is between them")
    if out.exists():
        raise UserError(f"{out} exists; name another file, or remove it")
    aside = out.with_name(f".{out.name}.partial")
    questions: set[str] = set()
    count = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as file:
            rows = islice(_questions(_read(source), source), start, stop)
            for position, question in enumerate(rows, start=start):
                file.write(json.dumps(_prompt(position, question), ensure_ascii=False))
                file.write("\n")
                questions.add(question)
                count += 1
        if count < stop - start:
            raise UserError(
                f"{source} has {count:,} rows of the domain {_DOMAIN} from --start"
                f" {start} on; --stop {stop} is beyond its end"
            )
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return f"{out}: {count:,} prompts, {len(questions):,} different questions"


def _prompt(position: int, question: str) -> dict[str, Any]:
    return {
        "prompt_id": f"openthoughts3-math-{position:06d}",
        "messages": [{"role": "user", "content": question}],
    }


def _read(source: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a data set in its order. Raises UserError."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    path = Path(source)
    try:
        if path.exists():
            files = (
                sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() else source
            )
            rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
                "parquet", data_files=files, split="train", streaming=True
            )
        else:
            rows = datasets.load_dataset(source, split="train", streaming=True)
        yield from rows
    except DatasetNotFoundError:
        raise UserError(
            f"--source {source}: no such file or folder, and the hub knows no such data"
            " set, or none that you may read (`hf auth login`)"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"--source {source}: cannot be read ({first_line(error)}); go online, or"
            " give a folder with its Parquet files"
        ) from None


def _questions(rows: Iterable[Mapping[str, Any]], source: str) -> Iterator[str]:
    """Yield the question of each row of the math part."""
    for number, row in enumerate(rows):
        missing = [column for column in _COLUMNS if column not in row]
        if missing:
            raise UserError(
                f"--source {source}: has no column {', '.join(missing)}; found"
                f" {', '.join(row)}"
            )
        if row["domain"] != _DOMAIN:
            continue
        turns = row["conversations"] or []
        asked = [turn["value"] for turn in turns if turn["from"] in _ASKED_BY]
        if not asked:
            raise UserError(f"--source {source}, row {number}: no turn of a human")
        yield asked[0]


__all__ = ["write_openthoughts3"]
