"""A finished run is extended under its own name; other files of the same name are not
taken for those of the run.
"""

import json
from pathlib import Path

from tests.runs import INLINE, Setting, losses, topd
from topd_ray.records.run_folder import RunFolder

SHORT = (*INLINE, "run.steps=2", "evaluation.path=null")


def test_a_finished_run_goes_on_to_more_steps(setting: Setting) -> None:
    whole = setting.train(
        "whole-of-four",
        *SHORT,
        "run.steps=4",
        "learner.lr_floor_fraction=1",
        "learner.warmup_fraction=0",
    )
    part = setting.train(
        "two-and-two",
        *SHORT,
        "learner.lr_floor_fraction=1",
        "learner.warmup_fraction=0",
    )
    changes = ("run.steps=4", "health.max_bad_steps=5")
    done = topd("resume", part.path, *changes, "--json")
    assert done.code == 0, done.output
    lines = [json.loads(line) for line in done.output.splitlines() if line[:1] == "{"]
    assert lines == [*part.metrics[2:], part.summary]
    # At a constant rate the length of the run is in no number.
    assert losses(part) == losses(whole)
    _, config = RunFolder.existing(part.path)
    assert (config.run.steps, config.health.max_bad_steps) == (4, 5)
    changed = [e for e in part.events if e["event"] == "config_changed"]
    assert [(e["field"], e["old"], e["new"]) for e in changed] == [
        ("run.steps", 2, 4),
        ("health.max_bad_steps", 3, 5),
    ]
    again = topd("resume", part.path)
    assert again.code == 2
    assert "is finished" in again.output


def test_a_job_submitted_again_with_more_steps_extends_its_run(
    setting: Setting,
) -> None:
    run = setting.train("job", *SHORT)
    again = ("train", "--resume", setting.file, "run.name=job", *SHORT)
    assert topd(*again).code == 0
    assert len(run.metrics) == 2
    refused = topd(*again, "learner.lr=0.5")
    assert refused.code == 2
    assert "may not change learner.lr 0.001 -> 0.5" in refused.output
    longer = topd(*again, "run.steps=3", "--quiet")
    assert longer.code == 0, longer.output
    assert "step" not in longer.output
    assert len(run.metrics) == 3


def test_data_that_changed_are_refused_by_name_or_accepted_by_name(
    setting: Setting, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    rows = (setting.folder / "prompts.jsonl").read_text().splitlines()
    data.write_text("\n".join(rows))
    run = setting.train("changed-data", *SHORT, f"prompts.path={data}")
    before = losses(run)
    data.write_text("\n".join(rows[:15]))
    refused = topd("resume", run.path, "run.steps=3")
    assert refused.code == 2
    assert "changed since step_2" in refused.output
    assert "--accept prompts.path" in refused.output
    # Nothing of the run is touched by what was refused.
    assert json.loads((run.path / "summary.json").read_text())["steps"] == 2
    assert losses(run) == before
    accepted = topd("resume", run.path, "run.steps=3", "--accept", "prompts.path")
    assert accepted.code == 0, accepted.output
    assert len(losses(run)) == 3
    assert [e["name"] for e in run.events if e["event"] == "input_accepted"] == [
        "prompts.path"
    ]
