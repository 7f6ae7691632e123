"""The overview's numbers and words."""

import json
from pathlib import Path
from typing import Any

import pytest

from topd_ray.config import parse_config
from topd_ray.page.overview import duration, overview, progress
from topd_ray.page.times import time_shares
from topd_ray.records.open_run import open_run
from topd_ray.records.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of 10 steps that has just begun."""
    values = {
        "run": {"root": str(tmp_path), "name": "one", "method": "opd", "steps": 10},
        "prompts": {"path": "p"},
        "teacher": {"model": "t"},
        "learner": {"model": "s"},
    }
    return RunFolder.create(parse_config(values, source="test"))


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_run_that_goes_on_says_how_long_it_will_take(folder: RunFolder) -> None:
    steps = [{"step": step, "step/wall_s": 2.0 + step} for step in (1, 2, 3)]
    write(folder.metrics, steps)
    with folder.locked():
        found = progress(open_run(folder.path))
    assert found == {
        "name": "one",
        "state": "running",
        "method": "opd",
        "step": 3,
        "num_steps": 10,
        "left_s": 4.0 * 7,
    }
    assert progress(open_run(folder.path))["left_s"] is None


def test_without_a_step_there_are_no_curves_and_no_error(folder: RunFolder) -> None:
    found = overview(open_run(folder.path), {})
    assert found["curves"] == found["tiles"] == found["accuracy"] == []
    assert found["step"] == 0


def test_curves_keep_gaps_and_leave_out_what_is_always_zero(folder: RunFolder) -> None:
    write(
        folder.metrics,
        [
            {"step": 1, "loss": 0.5, "takeover/frac": 0.0, "rollout/entropy": None},
            {"step": 2, "loss": None, "takeover/frac": 0.0, "rollout/entropy": 0.2},
        ],
    )
    curves = overview(open_run(folder.path), {1: 0.1})["curves"]
    lines = {curve["name"]: curve["series"][0]["values"] for curve in curves}
    assert lines == {"loss": [0.5, None], "entropy": [None, 0.2], "d_ot": [0.1, None]}


def test_accuracies_of_a_run_that_goes_on_are_those_of_its_events(
    folder: RunFolder,
) -> None:
    counts = {"num_problems": 100, "num_correct": 30}
    before = {"event": "evaluated_before", **counts}
    write(folder.events, [before, {"event": "evaluated", "step": 4, **counts}])
    rows = overview(open_run(folder.path), {})["accuracy"]
    assert [row["label"] for row in rows] == ["before training", "step 4"]
    assert (rows[1]["share"], rows[1]["count"]) == (0.3, 100)
    assert rows[1]["low"] < 0.3 < rows[1]["high"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (7440, "2 h 4 min"),
    ],
)
def test_seconds_are_said_as_a_person_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_shares_are_of_the_wall_clock_without_the_first_step() -> None:
    lines = [
        {"step/wall_s": 100.0, "busy/learner_frac": 0.0},
        {"step/wall_s": 1.0, "busy/learner_frac": 1.0},
        {
            "step/wall_s": 3.0,
            "busy/learner_frac": 0.2,
            "wait/learner_on_probe_frac": 0.8,
        },
        {"step/wall_s": 0.0, "busy/rollout_frac": 0.5},
    ]
    rollout, learner = time_shares(lines)
    assert (rollout["actor"], rollout["busy"]) == ("rollout", 0.0)
    assert learner["busy"] == pytest.approx((1.0 + 0.6) / 4)
    assert learner["waits"] == [{"on": "probe", "share": pytest.approx(0.6)}]
