"""What is left behind of every probed window."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tests.make import probes
from topd_ray.messages import HIGH, LOW, RANDOM
from topd_ray.records.window_file import WindowRecorder


def test_windows_are_recorded_with_their_verdict(tmp_path: Path) -> None:
    recorder = WindowRecorder(tmp_path / "windows")
    recorder.add(
        [probes(positions=(1, 4), distances=(0.9, 0.1), num_student=(3, 2))], 0.5
    )
    recorder.write(12)
    recorder.write(13)  # a step without windows leaves no file
    (file,) = (tmp_path / "windows").iterdir()
    rows = pq.read_table(file).to_pylist()
    assert file.name == "step_000012.parquet"
    assert [row["divergent"] for row in rows] == [True, False]
    assert [row["position"] for row in rows] == [1, 4]
    assert [len(row["student_ids"]) for row in rows] == [3, 2]


def test_a_window_is_recorded_with_its_group_and_whose_tokens_it_holds(
    tmp_path: Path,
) -> None:
    groups = np.array([HIGH, RANDOM, LOW], np.int32)
    one = probes(
        positions=(1, 2, 3),
        distances=(0.9,) * 3,
        num_student=(3, 2, 1),
        groups_W=groups,
    )
    recorder = WindowRecorder(tmp_path)
    recorder.add([one, dataclasses.replace(one, rollout_id="r1", resampled=True)], 0.5)
    recorder.write(1)
    rows = pq.read_table(tmp_path / "step_000001.parquet").to_pylist()
    assert [row["group"] for row in rows] == ["high", "random", "low"] * 2
    assert [row["divergent"] for row in rows] == [True, False, False] * 2
    assert [row["resampled"] for row in rows] == [False] * 3 + [True] * 3
