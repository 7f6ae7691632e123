"""What `topd runs` says of runs that go on, have ended, or cannot be read."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from topd_ray.cli import app
from topd_ray.commands.runs import find_runs
from topd_ray.config import Config, parse_config
from topd_ray.records.run_folder import RunFolder


def config(root: Path, name: str) -> Config:
    return parse_config(
        {
            "run": {"root": str(root), "name": name, "method": "opd", "steps": 40},
            "prompts": {"path": "p"},
            "teacher": {"model": "t"},
            "learner": {"model": "s"},
        },
        source="test",
    )


def started(root: Path, name: str, *, steps: int = 0) -> RunFolder:
    run = RunFolder.create(config(root, name))
    lines = [json.dumps({"step": step}) for step in range(1, steps + 1)]
    # The last line is still being written.
    run.metrics.write_text("".join(f"{line}\n" for line in lines) + '{"step": 9')
    events = [
        {"event": "checkpoint", "step": 2},
        {"event": "evaluated", "step": 2, "num_problems": 8, "num_correct": 2},
    ]
    run.events.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return run


def test_a_run_is_running_while_a_process_holds_its_lock(tmp_path: Path) -> None:
    run = started(tmp_path, "one", steps=3)
    with run.locked():
        (line,) = find_runs(tmp_path)
        assert (line.state, line.method) == ("running", "opd")
        assert (line.step, line.steps, line.accuracy) == (3, 40, 0.25)
    (line,) = find_runs(tmp_path)
    assert line.state == "stopped"


def test_to_look_takes_no_lock_from_a_run_that_starts(tmp_path: Path) -> None:
    run = started(tmp_path, "one")
    with run.locked():
        find_runs(tmp_path)
    with run.locked():
        pass


def test_a_finished_run_has_the_accuracies_of_its_summary(tmp_path: Path) -> None:
    run = started(tmp_path, "one", steps=3)
    run.summary.write_text(json.dumps({"accuracy_before": 0.2, "accuracy_after": 0.5}))
    (line,) = find_runs(tmp_path)
    assert (line.state, line.accuracy_before, line.accuracy) == ("finished", 0.2, 0.5)


def test_a_run_that_measures_nothing_has_no_accuracy(tmp_path: Path) -> None:
    run = RunFolder.create(config(tmp_path, "one"))
    summary = {"accuracy_before": None, "accuracy_after": None}
    run.summary.write_text(json.dumps(summary))
    (line,) = find_runs(tmp_path)
    assert (line.step, line.accuracy) == (0, None)


@pytest.mark.parametrize("text", ["run: {nmae: x}", "[", "\udcff"])
def test_what_cannot_be_read_is_named_beside_the_others(
    tmp_path: Path, text: str
) -> None:
    started(tmp_path, "good")
    broken = tmp_path / "[red]broken"
    broken.mkdir()
    (broken / "config.yaml").write_text(text, errors="surrogateescape")
    states = {Path(line.path).name: line.state for line in find_runs(tmp_path)}
    assert states == {"good": "stopped", "[red]broken": "unreadable"}
    done = CliRunner().invoke(app, ["runs", str(tmp_path)], env={"COLUMNS": "500"})
    assert done.exit_code == 0
    assert "[red]broken" in done.output


def test_json_holds_what_the_table_shows(tmp_path: Path) -> None:
    started(tmp_path / "study" / "runs", "one", steps=3)
    done = CliRunner().invoke(app, ["runs", str(tmp_path), "--json"])
    (line,) = json.loads(done.output)
    assert (line["step"], line["state"]) == (3, "stopped")
    assert line["path"].endswith("study/runs/one")


def test_a_folder_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["runs", str(tmp_path / "none")])
    assert "no such folder" in str(done.exception)
