"""A run folder as tables: whole, running, crashed, torn, of another version."""

import json
from pathlib import Path
from shutil import copytree

import pytest

import topd_ray
from topd_ray.errors import UserError


@pytest.fixture
def run_path(synthetic: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return copytree(synthetic, tmp_path / "run")


def test_every_part_is_a_table_with_its_step(synthetic: Path) -> None:
    run = topd_ray.open_run(synthetic)
    assert run.state == "finished"
    assert run.config is not None
    assert run.config.run.steps == 6
    assert run.metrics["step"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert run.steps("windows") == run.steps("rollouts") == [1, 2, 3, 4, 5, 6]
    assert set(run.windows["step"].to_pylist()) == {1, 2, 3, 4, 5, 6}
    assert run.rollouts.num_rows == 24
    assert run.timeline.num_rows == 6 * 21
    assert run.windows.to_pandas().d_ot.notna().all()
    assert run.problems == []


def test_an_event_keeps_what_is_its_own_as_json(synthetic: Path) -> None:
    events = topd_ray.open_run(str(synthetic)).events.to_pylist()
    (skipped,) = (event for event in events if event["event"] == "step_skipped")
    assert skipped["step"] == 3
    assert json.loads(skipped["details"])["dump"] == "step_3"


def test_a_folder_that_is_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run folder \(no config\.yaml"):
        topd_ray.open_run(tmp_path)


def test_a_line_that_is_still_written_does_not_count(run_path: Path) -> None:
    with (run_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss"')
    run = topd_ray.open_run(run_path)
    assert run.metrics.num_rows == 6
    assert run.problems == []


def test_a_torn_line_and_a_torn_file_are_named_and_left_out(run_path: Path) -> None:
    metrics = run_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "los\n' + metrics.read_text())
    (run_path / "windows" / "step_000002.parquet").write_bytes(b"PAR1 no")
    run = topd_ray.open_run(run_path)
    assert run.metrics.num_rows == 6
    assert 2 not in run.windows["step"].to_pylist()
    assert run.problems[0] == "metrics.jsonl: 1 lines cannot be read"
    assert run.problems[1].startswith("step_000002.parquet cannot be read:")


def test_a_run_that_has_just_begun_has_empty_tables(run_path: Path) -> None:
    for part in run_path.iterdir():
        if part.is_file() and part.name != "config.yaml":
            part.unlink()
    for part in ("windows", "rollouts", "timeline"):
        for file in (run_path / part).iterdir():
            file.unlink()
    run = topd_ray.open_run(run_path)
    assert run.state == "stopped"
    assert run.summary == {}
    assert [t.num_rows for t in (run.metrics, run.events, run.windows)] == [0, 0, 0]


def test_a_config_of_another_version_leaves_the_rest_readable(run_path: Path) -> None:
    with (run_path / "config.yaml").open("a") as file:
        file.write("unheard_of: {}\n")
    run = topd_ray.open_run(run_path)
    assert run.config is None
    assert run.metrics.num_rows == 6
    assert "config.yaml is of another version" in run.problems[0]


def test_windows_of_two_ranks_and_of_an_older_version_go_together(
    run_path: Path,
) -> None:
    import pyarrow.parquet as pq

    file = run_path / "windows" / "step_000001.parquet"
    table = pq.read_table(file)
    pq.write_table(
        table.select(["rollout_id", "position", "d_ot"]),
        run_path / "windows" / "step_000001-rank1.parquet",
    )
    found = topd_ray.open_run(run_path).read("windows", 1)
    assert found is not None
    assert found.num_rows == 2 * table.num_rows
    assert found["plan_mass"].null_count >= table.num_rows


def test_files_that_come_later_are_found(run_path: Path) -> None:
    run = topd_ray.open_run(run_path)
    assert run.steps("windows")[-1] == 6
    first = run_path / "windows" / "step_000001.parquet"
    (run_path / "windows" / "step_000007.parquet").write_bytes(first.read_bytes())
    assert run.steps("windows")[-1] == 7
