"""A step's probed windows -> arrays, and the blocks that the page reads.

Axes: W windows, R rows of a plan (student tokens), E entries of all plans.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from topd_ray.page.arrow import lists, numbers, starts, texts
from topd_ray.page.blocks import BlockColumn, thousandths
from topd_ray.page.tokens import TokenTexts, vocabulary
from topd_ray.transport import soft_targets

GROUP_NAMES = ("high", "random", "low")
CONTROL, FALSE_ALARM, DIVERGENT, UNSOLVED = 0, 1, 2, 3
VERDICT_NAMES = ("control", "false alarm", "real divergence", "unsolved")
WHOLE_WEIGHT = 65_535
"""Integer that stands for a soft target of 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWindows:
    """The windows of one step as arrays."""

    step: int
    table: pa.Table
    rollout_ids: list[str]
    """Of each window."""
    groups_W: NDArray[np.uint8]
    """Index into `GROUP_NAMES`."""
    verdicts_W: NDArray[np.uint8]
    """Index into `VERDICT_NAMES`."""
    losses_W: NDArray[np.float32]
    d_ot_W: NDArray[np.float32]
    threshold_W: NDArray[np.float32]
    first_W: NDArray[np.uint32]
    """The student's token at the window's position."""

    def __len__(self) -> int:
        return len(self.rollout_ids)


def read_windows(table: pa.Table, step: int) -> StepWindows:
    """Return a step's windows with their verdicts."""
    groups_W = np.array(
        [
            GROUP_NAMES.index(g) if g in GROUP_NAMES else 1
            for g in texts(table, "group")
        ],
        np.uint8,
    )
    d_ot_W = numbers(table, "d_ot", "float32", missing=np.nan)
    threshold_W = numbers(table, "threshold", "float32", missing=np.nan)
    divergent_W = numbers(table, "divergent", "uint8")
    ids, lengths_W = lists(table, "student_ids", "uint32")
    first_W = np.zeros(len(table), np.uint32)
    first_W[lengths_W > 0] = ids[starts(lengths_W)[:-1][lengths_W > 0]]
    return StepWindows(
        step=step,
        table=table,
        rollout_ids=texts(table, "rollout_id"),
        groups_W=groups_W,
        verdicts_W=_verdicts(groups_W, d_ot_W, threshold_W, divergent_W),
        losses_W=numbers(table, "token_loss", "float32", missing=np.nan),
        d_ot_W=d_ot_W,
        threshold_W=threshold_W,
        first_W=first_W,
    )


def _verdicts(
    groups_W: NDArray[np.uint8],
    d_ot_W: NDArray[np.float32],
    threshold_W: NDArray[np.float32],
    divergent_W: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    verdicts_W = np.full(len(groups_W), CONTROL, np.uint8)
    is_high_W = groups_W == 0
    verdicts_W[is_high_W] = FALSE_ALARM
    # Only a plan that did not converge gets no verdict in spite of its distance.
    is_far_W = ~np.isfinite(d_ot_W) | (d_ot_W > threshold_W)
    verdicts_W[is_high_W & is_far_W] = UNSOLVED
    verdicts_W[is_high_W & (divergent_W > 0)] = DIVERGENT
    return verdicts_W


def list_columns(windows: StepWindows, tokens: TokenTexts) -> dict[str, BlockColumn]:
    """Return what the list of windows shows, filters and searches."""
    table = windows.table
    student, num_student_W = lists(table, "student_ids", "uint32")
    teacher, num_teacher_W = lists(table, "teacher_ids", "uint32")
    names = list(dict.fromkeys(windows.rollout_ids))
    place = {name: index for index, name in enumerate(names)}
    _, num_entries_W = lists(table, "plan_rows", "int32")
    return {
        "rollout_ids": names,
        "rollout": np.array([place[n] for n in windows.rollout_ids], np.uint32),
        "position": numbers(table, "position", "uint32"),
        "resampled": numbers(table, "resampled", "uint8"),
        "group": windows.groups_W,
        "verdict": windows.verdicts_W,
        "loss": windows.losses_W,
        "d_ot": windows.d_ot_W,
        "threshold": windows.threshold_W,
        "kind": tokens.kinds(windows.first_W),
        "num_student": num_student_W.astype(np.uint16),
        "num_teacher": num_teacher_W.astype(np.uint16),
        "student": student,
        "teacher": teacher,
        "has_plan": (num_entries_W > 0).astype(np.uint8),
        **vocabulary(tokens, [student, teacher]),
    }


def plan_columns(
    windows: StepWindows, tokens: TokenTexts
) -> dict[str, BlockColumn] | None:
    """Return plans and both models' likeliest tokens; None where none is recorded.

    There is one plan for each window with `has_plan`, in order. A plan is kept as the
    mass of each row and the soft target of each entry: an entry's mass is their
    product.
    """
    table = windows.table
    _, num_entries_W = lists(table, "plan_rows", "int32")
    kept = np.flatnonzero(num_entries_W > 0)
    if not len(kept):
        return None
    table = table.take(pa.array(kept))
    entries = _entries(table)
    tops = {
        f"{who}_top_{part}": lists(table, f"{who}_top_{name}", dtype)
        for who, logs in (("student", "logp"), ("teacher", "logq"))
        for part, name, dtype in (("ids", "ids", "uint32"), ("log", logs, "float32"))
    }
    columns: dict[str, Any] = dict(entries)
    for who in ("student", "teacher"):
        ids, counts = tops[f"{who}_top_ids"]
        logs, num_logs = tops[f"{who}_top_log"]
        columns[f"num_{who}_top"] = counts.astype(np.uint8)
        columns[f"{who}_top_ids"] = ids
        columns[f"{who}_top_log"] = (
            thousandths(logs) if len(logs) == len(ids) else thousandths(ids * np.nan)
        )
        del num_logs
    return columns | vocabulary(
        tokens, [tops["student_top_ids"][0], tops["teacher_top_ids"][0]]
    )


def _entries(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return rows of each plan, entries and mass of each row, and every entry."""
    rows_E, lengths = lists(table, "plan_rows", "int64")
    columns_E, _ = lists(table, "plan_columns", "int64")
    mass_E, _ = lists(table, "plan_mass", "float32")
    _, num_student = lists(table, "student_ids", "uint32")
    num_rows = np.maximum(num_student, 1)
    first_row = starts(num_rows)
    plan_E = np.repeat(np.arange(len(lengths)), lengths)
    row_E = first_row[plan_E] + np.minimum(rows_E, num_rows[plan_E] - 1)
    order = np.lexsort((columns_E, row_E))
    row_E, columns_E, mass_E, plan_E, rows_E = (
        part[order] for part in (row_E, columns_E, mass_E, plan_E, rows_E)
    )
    num_entries_R = np.bincount(row_E, minlength=int(first_row[-1]))
    mass_R = np.bincount(row_E, weights=mass_E, minlength=int(first_row[-1]))
    weights_E = _weights(plan_E, rows_E, columns_E, mass_E, num_rows)
    return {
        "num_rows": num_rows.astype(np.uint16),
        "num_entries": num_entries_R.astype(np.uint16),
        "row_mass": mass_R.astype(np.float32),
        "column": columns_E.astype(np.uint16),
        "weight": np.round(weights_E * WHOLE_WEIGHT).astype(np.uint16),
    }


def _weights(
    plan_E: NDArray[np.int64],
    rows_E: NDArray[np.int64],
    columns_E: NDArray[np.int64],
    mass_E: NDArray[np.float32],
    num_rows_W: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return the soft target (D8) of each entry, by the function that trains on it."""
    width = int(columns_E.max(initial=0)) + 1
    plan_WKK = torch.zeros(len(num_rows_W), int(num_rows_W.max()), width)
    entries = tuple(map(torch.from_numpy, (plan_E, rows_E, columns_E)))
    plan_WKK[entries] = torch.from_numpy(mass_E)
    targets_WKK = soft_targets(plan_WKK, torch.from_numpy(num_rows_W))
    weights: NDArray[np.float32] = targets_WKK[entries].numpy()
    return weights


__all__ = [
    "CONTROL",
    "DIVERGENT",
    "FALSE_ALARM",
    "GROUP_NAMES",
    "UNSOLVED",
    "VERDICT_NAMES",
    "StepWindows",
    "list_columns",
    "plan_columns",
    "read_windows",
]
