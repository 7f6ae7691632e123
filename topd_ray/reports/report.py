"""Report -> files: Markdown to read, Parquet and JSON to compute with, figures."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from topd_ray.records.run_folder import write_json, write_whole
from topd_ray.reports.provenance import Provenance
from topd_ray.reports.style import save_figure
from topd_ray.statistics import Estimate

Cell = str | int | float | bool | None | Estimate
"""One cell of a table.

An Estimate is one cell of Markdown and four columns of Parquet: value, low, high,
count.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of plain values; becomes `<study>-<name>.parquet`.

    Raises ValueError for a row whose length differs from that of `columns`.

    Example:
        >>> Table(name="groups", title="Groups", columns=("group", "median"),
        ...       rows=[("high loss", 0.566), ("low loss", 0.315)])
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    """A paragraph below the table in the Markdown."""
    shown: bool = True
    """Whether the Markdown and the JSON show it; False for a row per observation."""
    decimals: int = 3
    """Decimals of the numbers in the Markdown."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name}: {len(row)} cells under {self.columns}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A figure with its caption; becomes `<study>-<name>.png` and `.svg`."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All results of a study, ready to be written."""

    study: str
    title: str
    summary: Sequence[str]
    """Paragraphs that say what was done and what came out."""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    numbers: Mapping[str, object] = field(default_factory=dict)
    """Further values for the JSON; dataclasses, arrays and nesting are allowed."""
    text: str = ""
    """Shown unchanged in a block of fixed width."""


def write_report(report: Report, folder: Path, provenance: Provenance) -> Path:
    """Write every file of the report and return the path of the Markdown.

    The JSON comes last: where it exists, the report is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for table in report.tables:
        path = folder / f"{report.study}-{table.name}.parquet"
        pq.write_table(_parquet_columns(table), path)
    for plot in report.plots:
        save_figure(plot.figure, folder / f"{report.study}-{plot.name}")
    page = folder / f"{report.study}.md"
    write_whole(page, _markdown(report, provenance))
    everything: dict[str, object] = {
        "study": report.study,
        "numbers": report.numbers,
        "tables": {
            table.name: _json_rows(table) for table in report.tables if table.shown
        },
        "provenance": provenance,
    }
    plain = {name: _for_json(value) for name, value in everything.items()}
    write_json(folder / f"{report.study}.json", plain)
    return page


def as_text(cell: Cell, *, decimals: int = 3) -> str:
    """Return a cell of Markdown; a dash where there is no number.

    A number has `decimals` decimals, or two significant digits where it is small or
    large.
    """
    text = partial(as_text, decimals=decimals)
    if cell is None:
        return "-"
    if isinstance(cell, Estimate):
        # One observation has a value and no interval.
        if math.isnan(cell.low):
            return text(cell.value)
        return f"{text(cell.value)} [{text(cell.low)}, {text(cell.high)}]"
    if isinstance(cell, float):
        if math.isnan(cell):
            return "-"
        is_plain = cell == 0 or 10.0 ** (1 - decimals) <= abs(cell) < 1e5
        return f"{cell:.{decimals}f}" if is_plain else f"{cell:.2g}"
    # A token may be a bar, which would end the cell.
    return str(cell).replace("|", "\\|")


def _json_rows(table: Table) -> list[dict[str, Cell]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def _parquet_columns(table: Table) -> pa.Table:
    arrays: dict[str, list[Cell]] = {}
    for index, name in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        arrays[name] = [
            cell.value if isinstance(cell, Estimate) else cell for cell in cells
        ]
        if not any(isinstance(cell, Estimate) for cell in cells):
            continue
        # Columns of plain numbers: any reader of Parquet can compute with them.
        for part in ("low", "high", "count"):
            arrays[f"{name}_{part}"] = [
                getattr(cell, part) if isinstance(cell, Estimate) else None
                for cell in cells
            ]
    return pa.table(arrays)


def _markdown(report: Report, provenance: Provenance) -> str:
    parts = [f"# {report.title}", *report.summary]
    if report.text:
        parts.append(f"```text\n{report.text}\n```")
    for table in report.tables:
        if table.shown:
            parts += [f"## {table.title}", _markdown_table(table)]
            parts += [table.note] if table.note else []
    for plot in report.plots:
        parts += [
            f"![{plot.caption}]({report.study}-{plot.name}.png)",
            f"*{plot.caption}*",
        ]
    parts += ["## How this came about", _markdown_provenance(provenance)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    text = partial(as_text, decimals=table.decimals)
    lines = [list(table.columns), *(list(map(text, row)) for row in table.rows)]
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    marks = [
        "---:" if _is_numeric(table, index) else "---"
        for index in range(len(table.columns))
    ]
    return "\n".join([head, "|" + "|".join(marks) + "|", *body])


def _is_numeric(table: Table, index: int) -> bool:
    """Return whether every cell of a column is a number or empty."""
    return all(
        isinstance(row[index], int | float | Estimate | None) for row in table.rows
    )


def _markdown_provenance(provenance: Provenance) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in provenance.versions.items()
    )
    commit = provenance.commit or "none"
    return "\n".join(
        [
            (
                f"- config hash `{provenance.config_hash}`, study seed"
                f" {provenance.study_seed}, run seed {provenance.run_seed}"
            ),
            f"- commit `{commit}`{' with local changes' if provenance.dirty else ''}",
            (
                f"- {provenance.hardware}, {provenance.cores} cores in use; "
                f"{provenance.wall_s:.0f} s of wall time"
            ),
            f"- {versions}",
        ]
    )


def _for_json(value: object) -> object:
    """Return dataclasses and arrays as plain values, nan and infinities as None.

    JSON has no nan, and a file that holds one is refused by strict readers.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [part.name for part in dataclasses.fields(value)]
        return {name: _for_json(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _for_json(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _for_json(value.tolist())
    if isinstance(value, list | tuple):
        return [_for_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


__all__ = ["Cell", "Plot", "Report", "Table", "as_text", "write_report"]
