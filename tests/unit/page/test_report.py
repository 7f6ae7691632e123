"""The report of whole, small, large, broken and compared runs."""

import json
import os
import re
from html import unescape
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from topd_ray.errors import UserError
from topd_ray.page.report import _spread, write_report


def values_of(report: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="values">(.*?)</script>',
        report.read_text(encoding="utf-8"),
    )
    assert found is not None
    values: dict[str, Any] = json.loads(found[1])
    return values


def blocks_of(report: Path) -> list[str]:
    page = report.read_text(encoding="utf-8")
    return [unescape(name) for name in re.findall(r'id="block:([^"]+)"', page)]


@pytest.fixture
def run_path(synthetic: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return copytree(synthetic, tmp_path / "run")


def test_the_report_holds_every_part_of_the_run(run_path: Path) -> None:
    before = set(run_path.iterdir())
    report = write_report(run_path)
    assert set(run_path.iterdir()) - before == {report}
    values = values_of(report)
    assert values["missing"] == []
    assert values["steps"] == values["block_steps"] == [1, 2, 3, 4, 5, 6]
    assert {curve["name"] for curve in values["curves"]} >= {"loss", "entropy", "d_ot"}
    assert [row["label"] for row in values["accuracy"]] == [
        "before training",
        "after training",
    ]
    assert values["distributions"]["num_windows"] == 6 * 20
    assert values["times"][0]["actor"] == "rollout"
    kinds = {name.split("/")[0] for name in blocks_of(report)}
    assert kinds == {"list", "plans", "rollouts", "timeline"}


def test_a_limit_of_bytes_leaves_out_steps_evenly_and_says_so(run_path: Path) -> None:
    whole = write_report(run_path).stat().st_size
    report = write_report(run_path, max_bytes=100_000)
    values = values_of(report)
    assert report.stat().st_size < whole
    listed = [int(n.split("/")[1]) for n in blocks_of(report) if n.startswith("plans")]
    assert {1, 6} <= set(listed) < {1, 2, 3, 4, 5, 6}
    assert any("evenly over the run" in note for note in values["missing"])


def test_steps_are_taken_evenly_from_both_ends() -> None:
    assert list(_spread([])) == []
    assert list(_spread([3])) == [3]
    assert list(_spread(range(1, 10)))[:5] == [1, 9, 5, 3, 7]
    assert sorted(_spread(range(57))) == list(range(57))


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("windows", "No windows are recorded"),
        ("rollouts", "No rollouts are recorded"),
        ("timeline", "No calls of the actors are recorded"),
        ("summary.json", "The run is not finished, and no process"),
        ("metrics.jsonl", "No step is finished yet"),
    ],
)
def test_a_part_that_is_not_there_is_named(
    run_path: Path, part: str, sentence: str
) -> None:
    os.rename(run_path / part, run_path.parent / "away")
    missing = values_of(write_report(run_path))["missing"]
    assert [text for text in missing if text.startswith(sentence)], missing


def test_prompts_that_are_gone_leave_responses_ungraded(run_path: Path) -> None:
    config = run_path / "config.yaml"
    config.write_text(config.read_text().replace("train.jsonl", "gone.jsonl"))
    missing = values_of(write_report(run_path))["missing"]
    assert any("gone.jsonl is not on this machine" in text for text in missing)


def test_a_student_that_is_gone_leaves_tokens_as_numbers(run_path: Path) -> None:
    config = run_path / "config.yaml"
    config.write_text(config.read_text().replace("world/student", "world/gone"))
    missing = values_of(write_report(run_path))["missing"]
    assert any("tokens are shown by their numbers" in text for text in missing)


def test_a_config_of_another_version_still_gives_a_report(run_path: Path) -> None:
    with (run_path / "config.yaml").open("a") as file:
        file.write("unheard_of: {}\n")
    values = values_of(write_report(run_path))
    assert values["method"] == "topd"  # from the summary
    assert any("of another version" in text for text in values["missing"])


def test_a_run_that_goes_on_says_how_far_it_is(run_path: Path) -> None:
    from topd_ray.records.run_folder import RunFolder

    (run_path / "summary.json").unlink()
    with RunFolder(run_path).locked():
        values = values_of(write_report(run_path))
    assert (values["state"], values["step"], values["num_steps"]) == ("running", 6, 6)


def test_two_runs_are_compared_over_prompts_and_steps(
    synthetic: Path, run_path: Path
) -> None:
    values = values_of(write_report(run_path, against=synthetic))
    other = values["comparison"]
    assert len(other["prompts"]) == 12
    rows = {row["label"]: row for row in other["differences"]}
    assert rows["Right rollouts of a prompt"]["pairs"] == 12
    assert rows["Loss"]["pairs"] == 6
    assert all(row["difference"] == 0 for row in rows.values())
    held_out = rows["Accuracy on held-out problems"]
    assert held_out["low"] < 0 < held_out["high"]
    assert any(name.startswith("b/rollouts/") for name in blocks_of(run_path / REPORT))


def test_a_folder_that_is_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path)


REPORT = "report.html"


def test_a_run_that_went_back_is_read_anew(run_path: Path) -> None:
    from topd_ray.page.run_page import RunPage
    from topd_ray.records.open_run import open_run

    page = RunPage(open_run(run_path))
    assert page.values()["distributions"]["num_windows"] == 120
    (run_path / "windows" / "step_000006.parquet").unlink()
    page.again()
    assert page.values()["distributions"]["num_windows"] == 100
