"""Every probed window of a step: what was compared, and the verdict.

A Parquet file a step and learner rank, with the columns of `SCHEMA`. Axes as in
messages.py: W windows, K tokens of a continuation, M most likely ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from topd_ray.messages import HIGH, LOW, PAD, RANDOM, Floats, Ints, ProbeSet, Rollout
from topd_ray.windows import divergent

GROUPS = {HIGH: "high", RANDOM: "random", LOW: "low"}
NUM_LIKELIEST = 8
"""Most ids of `student_top_ids` and `teacher_top_ids`."""
SMALLEST_SHARE = 0.001
"""Entries of a plan below this share of their row's largest are left out.

At the paper's blur nine of ten entries are below it, and together hold less than 0.5 %
of a row's mass.
"""

_FOUND = [
    ("rollout_id", pa.string()),
    ("policy_version", pa.int32()),
    ("position", pa.int32()),
    ("group", pa.string()),
    ("resampled", pa.bool_()),
    ("token_loss", pa.float32()),
    ("d_ot", pa.float32()),
    ("threshold", pa.float32()),
    ("divergent", pa.bool_()),
    ("student_ids", pa.list_(pa.int32())),
    ("teacher_ids", pa.list_(pa.int32())),
]
_DETAILS = [
    ("plan_rows", pa.list_(pa.int16())),
    ("plan_columns", pa.list_(pa.int16())),
    ("plan_mass", pa.list_(pa.float32())),
    ("student_top_ids", pa.list_(pa.int32())),
    ("student_top_logp", pa.list_(pa.float32())),
    ("teacher_top_ids", pa.list_(pa.int32())),
    ("teacher_top_logq", pa.list_(pa.float32())),
]
SCHEMA = pa.schema([*_FOUND, *_DETAILS])
"""One row a window.

The columns from `plan_rows` on are null but for `records.max_windows_per_step` windows
of a step. A plan's entries are in order of rows: `plan_rows` counts student tokens of
the window, `plan_columns` teacher tokens. The soft target (D8) of a position is its row
of the plan divided by the row's sum, over `teacher_ids`: `transport.soft_targets`. The
likeliest ids at the position come best first; they are null where they are unknown.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowDetails:
    """What is recorded of a window beside what was compared."""

    plan_KK: Floats
    """Transport plan: rows student, columns teacher."""
    student_top: tuple[Ints, Floats] | None
    """Ids and log-probabilities at the position, best first; None: unknown."""
    teacher_top: tuple[Ints, Floats] | None


def window_rows(probe_set: ProbeSet, threshold: float) -> pa.RecordBatch:
    """Return the rows of a rollout's windows, without their details.

    The columns are copies: a view would keep the message in the object store.
    """
    num_windows = len(probe_set.positions_W)
    columns: list[Any] = [
        pa.repeat(probe_set.rollout_id, num_windows),
        np.full(num_windows, probe_set.policy_version, np.int32),
        probe_set.positions_W.copy(),
        [GROUPS[int(group)] for group in probe_set.groups_W],
        np.full(num_windows, probe_set.resampled),
        probe_set.losses_W.copy(),
        probe_set.d_ot_W.copy(),
        np.full(num_windows, threshold, np.float32),
        divergent(probe_set, threshold),
        _lists(probe_set.student_ids_WK, probe_set.num_student_W),
        _lists(probe_set.teacher_ids_WK, probe_set.num_teacher_W),
    ]
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, kind)
        for column, (_, kind) in zip(columns, _FOUND, strict=True)
    ]
    return pa.record_batch(arrays, schema=pa.schema(_FOUND))


def window_table(
    batches: Sequence[pa.RecordBatch], details: dict[int, WindowDetails]
) -> pa.Table:
    """Return the table of a step; `details` is by number of the row."""
    table = pa.Table.from_batches(batches, pa.schema(_FOUND))
    entries = {row: _entries(found) for row, found in details.items()}
    for name, kind in _DETAILS:
        column = [
            entries[row][name] if row in entries else None
            for row in range(table.num_rows)
        ]
        table = table.append_column(name, pa.array(column, kind))
    return table


def likeliest_of_student(rollout: Rollout, position: int) -> tuple[Ints, Floats] | None:
    """Return the student's likeliest ids at a position, best first; None: unknown."""
    if position >= rollout.num_own:
        return None
    ids_M = rollout.top_ids_OM[position, :NUM_LIKELIEST]
    known_M = ids_M != PAD
    logp_M = rollout.top_logp_OM[position, :NUM_LIKELIEST]
    return ids_M[known_M], logp_M[known_M]


def _lists(ids_WK: Ints, num_W: Ints) -> pa.Array:
    """Return the first ids of each row as a column of lists."""
    inside_WK = np.arange(ids_WK.shape[1])[None, :] < num_W[:, None]
    offsets = np.concatenate([[0], np.cumsum(num_W)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids_WK[inside_WK]))


def _entries(details: WindowDetails) -> dict[str, NDArray[Any] | None]:
    """Return the columns of one window."""
    plan_KK = details.plan_KK
    kept_KK = (plan_KK > 0) & (
        plan_KK >= SMALLEST_SHARE * plan_KK.max(axis=1, keepdims=True)
    )
    rows, columns = np.nonzero(kept_KK)
    student_ids, student_logp = details.student_top or (None, None)
    teacher_ids, teacher_logq = details.teacher_top or (None, None)
    return {
        "plan_rows": rows.astype(np.int16),
        "plan_columns": columns.astype(np.int16),
        "plan_mass": plan_KK[kept_KK],
        "student_top_ids": student_ids,
        "student_top_logp": student_logp,
        "teacher_top_ids": teacher_ids,
        "teacher_top_logq": teacher_logq,
    }


__all__ = [
    "GROUPS",
    "NUM_LIKELIEST",
    "SCHEMA",
    "SMALLEST_SHARE",
    "WindowDetails",
    "likeliest_of_student",
    "window_rows",
    "window_table",
]
