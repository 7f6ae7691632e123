"""What a study leaves behind: Markdown to read, Parquet and JSON to compute with,
figures.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from topd_ray.records.run_folder import write_json, write_whole
from topd_ray.reports.provenance import Provenance
from topd_ray.reports.style import save_figure
from topd_ray.statistics import Estimate

Cell = str | int | float | bool | None | Estimate
"""An Estimate is one cell of Markdown and four columns of Parquet: value, low, high,
count.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of plain values; becomes `<study>-<name>.parquet`."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    shown: bool = True
    """In the Markdown too; not for one row an observation."""
    decimals: int = 3
    """Of numbers in the Markdown."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name}: {len(row)} cells under {self.columns}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Becomes `<study>-<name>.png` and `.svg`."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of a study, ready to be written."""

    study: str
    title: str
    summary: Sequence[str]
    """Paragraphs that say what was done and what came out."""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else a machine should find in the JSON; estimates and nesting are
    fine.
    """
    text: str = ""
    """Shown as it is, in a fixed-width block."""


def write_report(report: Report, folder: Path, provenance: Provenance) -> Path:
    """Write every file of the report; the JSON comes last. Returns the Markdown's
    path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for table in report.tables:
        pq.write_table(_columns(table), folder / f"{report.study}-{table.name}.parquet")
    for plot in report.plots:
        save_figure(plot.figure, folder / f"{report.study}-{plot.name}")
    page = folder / f"{report.study}.md"
    write_whole(page, _markdown(report, provenance))
    tables = {
        table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        for table in report.tables
        if table.shown
    }
    everything = {
        "study": report.study,
        "numbers": report.numbers,
        "tables": tables,
        "provenance": provenance,
    }
    write_json(folder / f"{report.study}.json", _plain(everything))
    return page


def as_text(cell: Cell, *, decimals: int = 3) -> str:
    """A cell of Markdown: `decimals`, more where a number is small, a dash where there
    is none.
    """
    text = partial(as_text, decimals=decimals)
    if cell is None:
        return "-"
    if isinstance(cell, Estimate):
        if math.isnan(cell.low):
            return text(cell.value)
        return f"{text(cell.value)} [{text(cell.low)}, {text(cell.high)}]"
    if isinstance(cell, float):
        if math.isnan(cell):
            return "-"
        plain = cell == 0 or 10.0 ** (1 - decimals) <= abs(cell) < 1e5
        return f"{cell:.{decimals}f}" if plain else f"{cell:.2g}"
    return str(cell).replace("|", "\\|")


def _columns(table: Table) -> pa.Table:
    arrays: dict[str, list[Any]] = {}
    for index, name in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        estimates = [cell for cell in cells if isinstance(cell, Estimate)]
        arrays[name] = [
            cell.value if isinstance(cell, Estimate) else cell for cell in cells
        ]
        if not estimates:
            continue
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
            parts += [
                f"## {table.title}",
                _table(table),
                *([table.note] if table.note else []),
            ]
    for plot in report.plots:
        parts += [
            f"![{plot.caption}]({report.study}-{plot.name}.png)",
            f"*{plot.caption}*",
        ]
    parts += ["## How this came about", _provenance(provenance)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    cells = [
        [as_text(cell, decimals=table.decimals) for cell in row] for row in table.rows
    ]
    lines = [list(table.columns), *cells]
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    numeric = [
        all(isinstance(row[index], int | float | Estimate | None) for row in table.rows)
        for index in range(len(table.columns))
    ]
    rule = "|" + "|".join("---:" if right else "---" for right in numeric) + "|"
    return "\n".join([head, rule, *body])


def _provenance(provenance: Provenance) -> str:
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


def _plain(value: Any) -> Any:
    """What JSON can hold: nan and infinities become null, dataclasses and arrays plain
    values.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


__all__ = ["Cell", "Plot", "Report", "Table", "as_text", "write_report"]
