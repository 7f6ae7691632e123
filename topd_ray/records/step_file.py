"""Parquet files of one step: their names, how they get whole, and what is dropped when
steps are done again.
"""

import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_STEP_FILE = re.compile(r"step_(\d+)(-rank\d+)?\.parquet")


def write_step_file(table: pa.Table, folder: Path, *, step: int, rank: int = 0) -> None:
    """Write a step's table aside and move it into place.

    Rank 0 writes `step_000012.parquet`, rank 1 `step_000012-rank1.parquet`: ranks write
    at the same time, each what was in its share.
    """
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f"-rank{rank}" if rank else ""
    target = folder / f"step_{step:06d}{suffix}.parquet"
    # A reader of *.parquet must not meet half a file.
    aside = target.with_suffix(".partial")
    pq.write_table(table, aside, compression="zstd")
    os.replace(aside, target)


def step_files(folder: Path, step: int) -> list[Path]:
    """Return the files of a step, those of rank 0 first; none where it left none."""
    return sorted(
        path for path in folder.glob(f"step_{step:06d}*.parquet") if _step_of(path)
    )


def forget_steps_after(folder: Path, last_step: int) -> None:
    """Delete the files of later steps, which will be done again.

    They would not all be overwritten: a run may go on with fewer ranks, and a rank
    without a window writes no file.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        step = _step_of(path)
        if step is not None and step > last_step:
            path.unlink()


def _step_of(path: Path) -> int | None:
    match = _STEP_FILE.fullmatch(path.name)
    return None if match is None else int(match[1])


__all__ = ["forget_steps_after", "step_files", "write_step_file"]
