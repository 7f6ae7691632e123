"""A run folder as tables: what a run wrote, for notebooks and for the report.

Everything is read when it is asked for. A part that is not there is an empty table; a
part that cannot be read is left out, and `Run.problems` names it.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from topd_ray.config import Config, load_config
from topd_ray.errors import UserError, first_line
from topd_ray.records.run_folder import RunFolder

Part = Literal["windows", "rollouts", "timeline"]
"""A folder of Parquet files, one or more a step."""
RunProgress = Literal["running", "finished", "stopped"]

_KERNEL_LOCKS = Path("/proc/locks")
_STEP_FILE = re.compile(r"step_(\d+)(-rank\d+)?\.parquet")
_EVENT_COLUMNS = ("at", "event", "step")


def open_run(path: Path | str) -> "Run":
    """Return the records of a run. Raises UserError where there is no run folder.

    Example:
        >>> run = topd_ray.open_run("runs/demo")
        >>> run.windows.to_pandas().groupby("group").d_ot.median()
    """
    folder = RunFolder(Path(path).absolute())
    if not folder.config.is_file():
        raise UserError(f"{path}: no run folder (no config.yaml in it)")
    return Run(folder)


@dataclass(frozen=True)
class Run:
    """The records of one run; it may be running, stopped, or of an older version."""

    folder: RunFolder
    problems: list[str] = field(default_factory=list)
    """What could not be read so far: the file and the reason, one sentence each."""
    _listed: dict[Part, tuple[int, dict[int, list[Path]]]] = field(
        default_factory=dict, repr=False
    )
    """Files of each step, and when their folder had last changed."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.path.name

    @property
    def state(self) -> RunProgress:
        """`stopped`: no process of this machine works on it, and it is not finished."""
        if self.folder.summary.is_file():
            return "finished"
        return "running" if is_locked(self.folder) else "stopped"

    @cached_property
    def config(self) -> Config | None:
        """The resolved config; None where this version refuses it."""
        try:
            return load_config(self.folder.config)
        except UserError as error:
            self._note(f"config.yaml is of another version: {first_line(error)}")
            return None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; empty until the run is finished."""
        if not self.folder.summary.is_file():
            return {}
        try:
            summary: dict[str, Any] = json.loads(
                self.folder.summary.read_text(encoding="utf-8")
            )
        except (OSError, ValueError) as error:
            self._note(f"summary.json cannot be read: {first_line(error)}")
            return {}
        return summary

    @cached_property
    def metrics(self) -> pa.Table:
        """One row a step, one column a metric."""
        return _table(self.metric_lines)

    @cached_property
    def metric_lines(self) -> list[dict[str, Any]]:
        """The rows of `metrics` as plain values."""
        return self._lines(self.folder.metrics)

    @cached_property
    def events(self) -> pa.Table:
        """One row an event: `at`, `event`, `step`, and `details` as JSON text."""
        rows = []
        for line in self.event_lines:
            details = {
                key: value for key, value in line.items() if key not in _EVENT_COLUMNS
            }
            rows.append(
                {key: line.get(key) for key in _EVENT_COLUMNS}
                | {"details": json.dumps(details)}
            )
        return _table(rows)

    @cached_property
    def event_lines(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl as plain values."""
        return self._lines(self.folder.events)

    @cached_property
    def windows(self) -> pa.Table:
        """Every probed window, with its `step`; see records/window_file.py."""
        return self._whole("windows")

    @cached_property
    def rollouts(self) -> pa.Table:
        """The recorded rollouts, with their `step`."""
        return self._whole("rollouts")

    @cached_property
    def timeline(self) -> pa.Table:
        """Every call of every actor, with its `step`; seconds since the step began."""
        return self._whole("timeline")

    def steps(self, part: Part) -> list[int]:
        """Return the steps that have a file of a part, ascending."""
        return sorted(self._files(part))

    def read(self, part: Part, step: int) -> pa.Table | None:
        """Return a step's rows of a part; None where there are none."""
        files = self._files(part).get(step, [])
        tables = [table for file in files if (table := self._parquet(file)) is not None]
        if not tables:
            return None
        whole = pa.concat_tables(tables, promote_options="default")
        steps = pa.array([step] * len(whole), pa.int32())
        return whole.add_column(0, "step", steps)

    def _whole(self, part: Part) -> pa.Table:
        tables = [
            table
            for step in self.steps(part)
            if (table := self.read(part, step)) is not None
        ]
        if not tables:
            return pa.table({"step": pa.array([], pa.int32())})
        return pa.concat_tables(tables, promote_options="default")

    def _files(self, part: Part) -> dict[int, list[Path]]:
        folder = self.folder.path / part
        if not folder.is_dir():
            return {}
        # To list thousands of files anew for each of them would take most of the time.
        changed_ns = folder.stat().st_mtime_ns
        listed = self._listed.get(part)
        if listed is None or listed[0] != changed_ns:
            listed = changed_ns, _step_files(folder)
            self._listed[part] = listed
        return listed[1]

    def _parquet(self, file: Path) -> pa.Table | None:
        try:
            # Small files: threads would cost more than they save.
            return pq.read_table(file, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            self._note(f"{file.name} cannot be read: {first_line(error)}")
            return None

    def _lines(self, file: Path) -> list[dict[str, Any]]:
        lines, num_broken = json_lines(file)
        if num_broken:
            self._note(f"{file.name}: {num_broken} lines cannot be read")
        return lines

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def json_lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the JSON objects of a file, and the number of lines that hold none.

    A last line without its end is still being written and does not count.
    """
    if not file.is_file():
        return [], 0
    whole, _, _ = file.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    lines = []
    num_broken = 0
    for line in whole.split("\n") if whole else []:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            lines.append(value)
        else:  # a power cut in an earlier session may have torn a line
            num_broken += 1
    return lines, num_broken


def is_locked(folder: RunFolder) -> bool:
    """Return whether a process of this machine works on the run.

    Read from the kernel's list: to try the lock could take it from a run that starts.
    """
    lock = folder.path / ".lock"
    if not lock.is_file() or not _KERNEL_LOCKS.is_file():
        return False
    # 1: FLOCK  ADVISORY  WRITE 1234 08:01:131090 0 EOF
    inode = str(lock.stat().st_ino)
    held = (line.split() for line in _KERNEL_LOCKS.read_text().splitlines())
    return any(
        "FLOCK" in fields and fields[-3].endswith(f":{inode}") for fields in held
    )


def _step_files(folder: Path) -> dict[int, list[Path]]:
    files: dict[int, list[Path]] = {}
    for name in sorted(os.listdir(folder)):
        named = _STEP_FILE.fullmatch(name)
        if named is not None:
            files.setdefault(int(named[1]), []).append(folder / name)
    return files


def _table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table; a column is the union of its rows' kinds of number."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    # A loss of exactly 0 is written as an integer in some lines.
    if any(isinstance(value, float) for value in values):
        values = [float(v) if isinstance(v, int) else v for v in values]
    try:
        return pa.array(values)
    except pa.ArrowException:  # of several kinds: an older version wrote another one
        return pa.array([None if v is None else json.dumps(v) for v in values])


__all__ = ["Part", "Run", "RunProgress", "is_locked", "json_lines", "open_run"]
