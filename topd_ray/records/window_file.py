"""Every probed window of a run, one Parquet file a step: what was compared, and the
verdict.
"""

import os
from collections.abc import Sequence
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
    """Collects windows during a step and writes them when it is done."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[dict[str, Any]] = []

    def add(self, probes: Sequence[ProbeSet], threshold: float) -> None:
        """Keep the windows of a chunk until the step's file is written."""
        for one in probes:
            verdicts_W = divergent(one, threshold)
            for w, position in enumerate(one.positions_W):
                self._rows.append(
                    {
                        "rollout_id": one.rollout_id,
                        "policy_version": one.policy_version,
                        "position": int(position),
                        "group": GROUPS[int(one.groups_W[w])],
                        "resampled": one.resampled,
                        "token_loss": float(one.losses_W[w]),
                        "d_ot": float(one.d_ot_W[w]),
                        "threshold": threshold,
                        "divergent": bool(verdicts_W[w]),
                        "student_ids": one.student_ids_WK[w, : one.num_student_W[w]],
                        "teacher_ids": one.teacher_ids_WK[w, : one.num_teacher_W[w]],
                    }
                )

    def write(self, step: int) -> None:
        """Write `step_NNNNNN.parquet` aside, move it into place, start anew."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"step_{step:06d}.parquet"
        aside = target.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside)
        os.replace(aside, target)
