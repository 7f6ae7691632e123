"""A resumed run is refused by name where its files or its config are others."""

from pathlib import Path
from typing import Any

import pytest

from topd_ray.driver.checkpoint import Checkpoint
from topd_ray.driver.resuming import (
    changed_config,
    changed_inputs,
    refuse_fewer_steps,
    refuse_finished,
)
from topd_ray.errors import UserError
from topd_ray.records.run_folder import RunFolder

from .test_session import run_folder

NOW = {"prompts.path": "a" * 9, "teacher.model/weights": "b" * 9}


def checkpoint(**driver: Any) -> Checkpoint:
    return Checkpoint(Path("runs/r/checkpoints/step_2"), driver)


def test_files_that_are_the_same_are_no_change() -> None:
    assert changed_inputs(checkpoint(inputs=NOW), NOW, accept=()) == []
    assert changed_inputs(None, NOW, accept=()) == []


def test_a_changed_file_is_refused_with_both_fingerprints_and_the_way_out() -> None:
    then = {"prompts.path": "c" * 9, "teacher.model/weights": "b" * 9}
    with pytest.raises(UserError) as caught:
        changed_inputs(checkpoint(inputs=then), NOW, accept=())
    assert "since step_2 of runs/r" in str(caught.value)
    assert "prompts.path (cccccccc, now aaaaaaaa)" in str(caught.value)
    assert "--accept prompts.path" in str(caught.value)
    assert changed_inputs(checkpoint(inputs=then), NOW, accept=["prompts.path"]) == [
        "prompts.path"
    ]


def test_a_file_that_came_or_went_is_a_change() -> None:
    with pytest.raises(UserError, match=r"teacher\.model/weights \(not there, now bbb"):
        changed_inputs(
            checkpoint(inputs={"prompts.path": "a" * 9}), NOW, accept=["prompts.path"]
        )


def test_only_fields_of_files_can_be_accepted_and_old_checkpoints_are_named() -> None:
    with pytest.raises(UserError, match=r"--accept x: expected one of prompts\.path"):
        changed_inputs(None, NOW, accept=["x"])
    with pytest.raises(UserError, match=r"driver\.json names no inputs"):
        changed_inputs(checkpoint(step=2), NOW, accept=())


def test_overrides_change_what_may_change(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    _, old = RunFolder.existing(folder.path)
    new, (change,) = changed_config(folder, old, ["run.steps=9"])
    assert (new.run.steps, str(change)) == (9, "run.steps None -> 9")
    with pytest.raises(UserError, match=r"may not change learner\.lr 2e-06 -> 0\.1"):
        changed_config(folder, old, ["learner.lr=0.1"])


def test_a_finished_run_is_extended_and_never_shortened(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    _, old = RunFolder.existing(folder.path)
    _, longer = changed_config(folder, old, ["run.steps=9"])
    refuse_finished(folder, [])
    refuse_fewer_steps(folder, done=4, total=4)
    folder.summary.write_text("{}")
    refuse_finished(folder, longer)
    with pytest.raises(UserError, match=r"finished .* run\.steps=N` extends it"):
        refuse_finished(folder, [])
    refuse_fewer_steps(folder, done=4, total=5)
    for total in (3, 4):
        with pytest.raises(
            UserError, match=f"has done 4 steps, and would have {total}"
        ):
            refuse_fewer_steps(folder, done=4, total=total)
