"""Rows of the ablation from run folders that lie there already."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file
from scipy import stats

from topd_ray.errors import TopdError, UserError
from topd_ray.reports.report import Table
from topd_ray.statistics import Estimate
from topd_ray.studies.ablation import make_report, plan_runs
from topd_ray.studies.config import StudyConfig
from topd_ray.studies.planned_runs import PlannedRun, carry_out

BEFORE = {0: 0.30, 1: 0.32, 2: 0.28}
AFTER = {
    "opd": {0: 0.60, 1: 0.66, 2: 0.63},
    "topd": {0: 0.64, 1: 0.67, 2: 0.66},
}


def write_weights(folder: Path, value: float) -> None:
    save_file({"weight": np.full(1, value)}, folder / "model.safetensors")


def study(folder: Path, **ablation: Any) -> StudyConfig:
    (folder / "model").mkdir(exist_ok=True)
    write_weights(folder / "model", 0.0)
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "?", "answer": "1"}\n')
    run = folder / "run.yaml"
    run.write_text(
        f"run: {{method: opd}}\nprompts: {{path: {prompts}}}\nevaluation: {{path:"
        f" {prompts}}}\nteacher: {{model: {folder / 'model'}}}\nlearner: {{model:"
        " elsewhere}\n"
    )
    values = {
        "seeds": [0, 1, 2],
        "students": [str(folder / "model")] * 3,
        "variants": {
            "opd": {},
            "topd": {"overrides": ["run.method=topd", "objective.lambda_traj=0.3"]},
        },
        "reference": {"opd": 47.8},
    }
    return StudyConfig.model_validate(
        {"run": str(run), "out": str(folder / "out"), "ablation": values | ablation}
    )


def finish(planned_run: PlannedRun, *, after: float, during: float) -> None:
    """A folder as a finished run leaves it."""
    planned_run.folder.path.mkdir(parents=True)
    summary = {
        "accuracy_before": BEFORE[planned_run.seed],
        "accuracy_after": after,
        "num_eval": 1000,
        "steps": 20,
        "student_tokens": 5000,
        "teacher_tokens": 700,
        "trained_tokens": 5000,
        "num_candidates": 10,
        "num_divergent": 7,
        "num_taken_over": 0,
        "wall_s": 30.0,
        "cpu_s": 40.0,
    }
    planned_run.folder.summary.write_text(json.dumps(summary))
    event = {"event": "evaluated", "step": 10, "num_correct": round(1000 * during)}
    planned_run.folder.metrics.write_text('{"step/cpu_s": 2.0}\n' * 20)
    planned_run.folder.events.write_text(
        json.dumps(event | {"num_problems": 1000}) + "\n"
    )


def planned(chosen: StudyConfig) -> list[PlannedRun]:
    assert chosen.ablation is not None
    return plan_runs(chosen, chosen.ablation)


@pytest.fixture
def finished(tmp_path: Path) -> tuple[StudyConfig, list[PlannedRun]]:
    chosen = study(tmp_path)
    runs = planned(chosen)
    for planned_run in runs:
        after = AFTER[planned_run.variant][planned_run.seed]
        finish(planned_run, after=after, during=0.5)
    return chosen, runs


def find(runs: list[PlannedRun], variant: str, seed: int) -> PlannedRun:
    (found,) = [run for run in runs if (run.variant, run.seed) == (variant, seed)]
    return found


def rows(table: Table) -> dict[str, dict[str, Any]]:
    return {
        str(row[0]): dict(zip(table.columns, row, strict=True)) for row in table.rows
    }


def test_the_table_pairs_every_variant_with_the_baseline_seed_by_seed(
    finished: tuple[StudyConfig, list[PlannedRun]],
) -> None:
    chosen, runs = finished
    assert chosen.ablation is not None
    found = rows(make_report(runs, chosen.ablation, seed=0).tables[0])
    assert list(found) == ["warm start", "opd", "topd"]
    assert found["warm start"]["accuracy, %"].value == pytest.approx(30.0)
    difference = found["topd"]["against opd, points"]
    assert isinstance(difference, Estimate)
    assert difference.value == pytest.approx((4 + 1 + 3) / 3)
    theirs = stats.ttest_rel([64, 67, 66], [60, 66, 63])
    assert found["topd"]["p"] == pytest.approx(theirs.pvalue)
    assert (difference.low, difference.high) == pytest.approx(
        tuple(theirs.confidence_interval())
    )
    assert found["opd"]["against opd, points"] is None
    assert found["opd"]["paper, %"] == 47.8
    assert found["opd"]["mean over the curve, %"].value == pytest.approx(
        (30 + 50 + 63) / 3
    )


def test_a_curve_goes_from_before_through_what_was_evaluated_to_after(
    finished: tuple[StudyConfig, list[PlannedRun]],
) -> None:
    _, runs = finished
    result = find(runs, "topd", 1).result()
    assert result.curve == [(0, 0.32), (10, 0.5), (20, 0.67)]
    assert result.seconds_curve == [(0, 0.32), (20, 0.5), (40, 0.67)]


def test_a_run_is_known_again_by_everything_its_result_depends_on(
    tmp_path: Path,
) -> None:
    def folders(chosen: StudyConfig) -> list[Path]:
        return [planned_run.folder.path for planned_run in planned(chosen)]

    chosen = study(tmp_path)
    before = folders(chosen)
    assert len(set(before)) == 6
    assert before == folders(chosen)
    assert before == folders(
        study(tmp_path, overrides=["records.max_rollouts_per_step=0"])
    )
    write_weights(tmp_path / "model", 1.0)
    other_weights = folders(chosen)
    assert not set(other_weights) & set(before)
    assert not set(folders(study(tmp_path, overrides=["learner.lr=1e-5"]))) & set(
        before
    )


def test_finished_runs_are_not_done_again(
    finished: tuple[StudyConfig, list[PlannedRun]],
) -> None:
    chosen, _ = finished
    said: list[str] = []
    carry_out(planned(chosen), processes=1, report=said.append)
    assert said == ["6 runs, 6 of them finished before"]


@pytest.mark.parametrize("part", ["metrics.jsonl", "events.jsonl"])
def test_a_finished_run_that_lost_a_file_is_named_with_the_way_out(
    finished: tuple[StudyConfig, list[PlannedRun]], part: str
) -> None:
    _, runs = finished
    broken = find(runs, "topd", 2)
    (broken.folder.path / part).unlink()
    with pytest.raises(UserError, match=f"topd-seed2-.* no {part}: remove the folder"):
        broken.result()


@pytest.mark.usefixtures("finished")
def test_a_run_whose_student_is_not_sampled_yet_is_not_finished(
    tmp_path: Path,
) -> None:
    chosen = study(tmp_path, sampled_problems=10, samples=2)
    runs = planned(chosen)
    assert [run.is_finished for run in runs] == [False] * 6
    sampled = {"num_problems": 10, "samples": 2, "avg": 0.25, "pass_any": 0.5}
    for run in runs:
        (run.folder.path / "sampled-10x2.json").write_text(json.dumps(sampled))
    assert [run.is_finished for run in runs] == [True] * 6
    assert chosen.ablation is not None
    tables = {
        table.name: table for table in make_report(runs, chosen.ablation, seed=0).tables
    }
    found = rows(tables["samples"])["topd"]
    assert found["avg@2, %"].value == pytest.approx(25.0)
    assert found["pass@2, %"].value == pytest.approx(50.0)
    other = planned(study(tmp_path, sampled_problems=10, samples=4))
    assert not any(run.is_finished for run in other)


def test_a_run_that_fails_is_named_with_its_log_when_the_others_are_through(
    finished: tuple[StudyConfig, list[PlannedRun]],
) -> None:
    chosen, runs = finished
    broken = find(runs, "topd", 2)
    broken.folder.summary.unlink()  # its model folder holds no model
    with pytest.raises(
        TopdError, match=r"1 of 6 runs failed; see .*topd-seed2-.*log.txt"
    ):
        carry_out(planned(chosen), processes=1, report=lambda _: None)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            {"comparisons": [{"of": "topd", "against": "kd", "by": "greedy"}]},
            "no variant with ['kd']",
        ),
        (
            {"comparisons": [{"of": "topd", "against": "opd", "by": "avg"}]},
            "set ablation.sampled_problems",
        ),
        ({"fresh": [2, 7]}, "[7] are not in ablation.seeds"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, section: dict[str, Any], expected: str
) -> None:
    named = [row | {"name": "a question"} for row in section.get("comparisons", [])]
    with pytest.raises(ValidationError) as error:
        study(tmp_path, **section | {"comparisons": named})
    assert expected in str(error.value)


def test_the_report_has_the_title_of_the_study_file(
    finished: tuple[StudyConfig, list[PlannedRun]], tmp_path: Path
) -> None:
    _, runs = finished
    titled = study(tmp_path, title="Two methods").ablation
    assert titled is not None
    assert make_report(runs, titled, seed=0).title == "Two methods"
