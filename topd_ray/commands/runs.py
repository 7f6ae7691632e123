"""`topd runs`: the runs below a folder, and how far each is."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from topd_ray.config import Config
from topd_ray.errors import TopdError, UserError, first_line, printable
from topd_ray.records.open_run import is_locked, json_lines
from topd_ray.records.run_folder import RunFolder

State = Literal["running", "finished", "stopped", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """One run as the table shows it."""

    path: str
    state: State
    """`stopped`: no process works on it, and it is not finished."""
    method: str | None = None
    step: int = 0
    steps: int | None = None
    """Optimizer steps that were asked for; None: as many as the prompts give."""
    accuracy_before: float | None = None
    """From 0 to 1; None where it was not measured, or the run is not finished."""
    accuracy: float | None = None
    """The latest one."""
    note: str = ""
    """Why it cannot be read."""


def print_runs(folder: Path, *, as_json: bool) -> None:
    """Print the runs below a folder, the one that changed last first.

    Raises UserError where there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds run folders")
    lines = find_runs(folder)
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
        return
    console = Console()
    if lines:
        console.print(_table(lines))
    else:
        console.print(f"{folder}: no runs in it", markup=False)


def find_runs(folder: Path) -> list[RunLine]:
    """Return the runs in a folder and below it, the one that changed last first."""
    found = [file.parent for file in folder.rglob("config.yaml")]
    found.sort(key=lambda path: _changed_s(RunFolder(path)), reverse=True)
    return [_read(path, str(path)) for path in found]


def _changed_s(run: RunFolder) -> float:
    files = (run.summary, run.metrics, run.config)
    return max(file.stat().st_mtime for file in files if file.is_file())


def _read(path: Path, name: str) -> RunLine:
    try:
        run, config = RunFolder.existing(path)
        return _line(run, config, name)
    except (TopdError, OSError, ValueError, KeyError, TypeError) as error:
        # A run of another version, or a folder that is no run: the others are shown.
        return RunLine(path=name, state="unreadable", note=first_line(error))


def _line(run: RunFolder, config: Config, name: str) -> RunLine:
    metrics = json_lines(run.metrics)[0]
    evaluated = [e for e in json_lines(run.events)[0] if e["event"] == "evaluated"]
    accuracies = [e["num_correct"] / e["num_problems"] for e in evaluated]
    before = None
    latest = accuracies[-1] if accuracies else None
    state: State = "running" if is_locked(run) else "stopped"
    if run.summary.is_file():
        summary = json.loads(run.summary.read_text(encoding="utf-8"))
        before, latest = summary["accuracy_before"], summary["accuracy_after"]
        state = "finished"
    return RunLine(
        path=name,
        state=state,
        method=config.run.method,
        step=metrics[-1]["step"] if metrics else 0,
        steps=config.run.steps,
        accuracy_before=before,
        accuracy=latest,
    )


def _table(lines: Sequence[RunLine]) -> Table:
    table = Table("run", "method", "step", "accuracy", "state")
    table.columns[2].justify = table.columns[3].justify = "right"
    for line in lines:
        steps = "" if line.steps is None else f" of {line.steps}"
        table.add_row(
            Text(printable(line.path)),
            line.method or "",
            f"{line.step}{steps}",
            _accuracy(line),
            Text(printable(f"{line.state}: {line.note}" if line.note else line.state)),
        )
    return table


def _accuracy(line: RunLine) -> str:
    if line.accuracy is None:
        return ""
    if line.accuracy_before is None:
        return f"{line.accuracy:.1%}"
    return f"{line.accuracy_before:.1%} -> {line.accuracy:.1%}"


__all__ = ["RunLine", "find_runs", "print_runs"]
