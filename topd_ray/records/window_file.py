"""Every probed window of a run: what was compared, and the verdict.

A Parquet file a step and learner rank, with the columns of `SCHEMA`.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from topd_ray.messages import HIGH, LOW, RANDOM, ProbeSet
from topd_ray.windows import divergent

GROUPS = {HIGH: "high", RANDOM: "random", LOW: "low"}

SCHEMA = pa.schema(
    [
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
)


class WindowRecorder:
    """Collects a learner rank's windows during a step and writes them at its end."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self._folder = folder
        self._rank = rank
        self._rows: list[dict[str, Any]] = []

    def add(self, probe_sets: Sequence[ProbeSet], threshold: float) -> None:
        """Keep the windows of a share until the step's file is written."""
        for probe_set in probe_sets:
            self._rows += _rows(probe_set, threshold)

    def write(self, step: int) -> None:
        """Write the step's file aside, move it into place, and start anew.

        Rank 0 writes `step_000012.parquet`, rank 1 `step_000012-rank1.parquet`.
        """
        rows = self._rows
        self._rows = []
        if not rows:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        # Ranks write at the same time, each the windows of its share.
        suffix = f"-rank{self._rank}" if self._rank else ""
        target = self._folder / f"step_{step:06d}{suffix}.parquet"
        # A reader of windows/*.parquet must not meet half a file.
        aside = target.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside)
        os.replace(aside, target)

    def clear(self) -> None:
        """Drop the windows of a step that is abandoned."""
        self._rows = []


def _rows(probe_set: ProbeSet, threshold: float) -> Iterator[dict[str, Any]]:
    verdicts_W = divergent(probe_set, threshold)
    for w, position in enumerate(probe_set.positions_W):
        yield {
            "rollout_id": probe_set.rollout_id,
            "policy_version": probe_set.policy_version,
            "position": int(position),
            "group": GROUPS[int(probe_set.groups_W[w])],
            "resampled": probe_set.resampled,
            "token_loss": float(probe_set.losses_W[w]),
            "d_ot": float(probe_set.d_ot_W[w]),
            "threshold": threshold,
            "divergent": bool(verdicts_W[w]),
            "student_ids": probe_set.student_ids_WK[w, : probe_set.num_student_W[w]],
            "teacher_ids": probe_set.teacher_ids_WK[w, : probe_set.num_teacher_W[w]],
        }
