"""What a run has recorded of a step, compared with its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.runs import Run
from topd_ray.records.step_file import step_files

Row = dict[str, Any]


def recorded(run: Run, kind: str, step: int) -> list[Row]:
    """The rows of a step, of all ranks."""
    files = step_files(run.path / kind, step)
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def refuse_wrong_records(run: Run, line: Mapping[str, Any], *, signal: str) -> None:
    """Fail where a step's records differ from its metrics.

    The step has at most as many rollouts and windows as are recorded.
    """
    step = line["step"]
    rollouts = {row["rollout_id"]: row for row in recorded(run, "rollouts", step)}
    assert len(rollouts) == line["rollout/num"]
    for rollout in rollouts.values():
        assert len(rollout["logp"]) == rollout["num_own"]
        assert len(rollout["response_ids"]) == len(rollout["token_loss"])
        assert len(rollout["response_ids"]) == len(rollout["logq"])
    assert line["teacher/num_tokens"] == sum(
        len(rollout["token_loss"]) for rollout in rollouts.values()
    )
    assert line["takeover/num"] == sum(
        rollout["takeover_position"] is not None for rollout in rollouts.values()
    )
    windows = recorded(run, "windows", step)
    assert sum(row["group"] == "high" for row in windows) == line["candidates/num"]
    for window in windows:
        _refuse_wrong_window(window, rollouts[window["rollout_id"]], signal)
    calls = {row["call"] for row in recorded(run, "timeline", step)}
    assert calls >= {"roll_out", "score", "accumulate", "step"}


def _refuse_wrong_window(window: Row, rollout: Row, signal: str) -> None:
    place = window["position"]
    assert window["token_loss"] == rollout["token_loss"][place]
    plan_KK = np.zeros((len(window["student_ids"]), len(window["teacher_ids"])))
    plan_KK[window["plan_rows"], window["plan_columns"]] = window["plan_mass"]
    assert plan_KK.sum() == pytest.approx(1, abs=0.01)
    token = rollout["response_ids"][place]
    if place < rollout["num_own"]:
        top = window["student_top_ids"], window["student_top_logp"]
        _refuse_other_log(top, token, rollout["logp"][place])
    assert (window["teacher_top_ids"] is None) == (signal == "sampled")
    if signal != "sampled":
        top = window["teacher_top_ids"], window["teacher_top_logq"]
        _refuse_other_log(top, token, rollout["logq"][place])


def _refuse_other_log(
    top: tuple[Sequence[int], Sequence[float]], token: int, log: float
) -> None:
    """Fail where a token is among the likeliest with another log-probability."""
    assert list(top[1]) == sorted(top[1], reverse=True)
    logs = dict(zip(*top, strict=True))
    assert logs.get(token, log) == pytest.approx(log, abs=1e-4)
