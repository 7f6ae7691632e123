"""Student and teacher of a config: their folders, and the commits they come from."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from topd_ray.config import Config, dump_config, load_config, parse_config
from topd_ray.errors import UserError
from topd_ray.models.folder import find_model, resolve_model
from topd_ray.models.roles import (
    find_student,
    find_teacher,
    resolve_teacher,
    with_pinned_revisions,
    with_revisions_of,
)

OLD = "a" * 40
NEW = "b" * 40


@pytest.fixture
def hub(offline: Path, student_folder: Path) -> Path:
    """A cache of acme/tiny with two commits: `main` is the new one, `v1` the old."""
    cached = offline / "models--acme--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(NEW)
    (cached / "refs" / "v1").write_text(OLD)
    for commit in (OLD, NEW):
        shutil.copytree(student_folder, cached / "snapshots" / commit)
    return cached


def config_of(learner: dict[str, Any], teacher: dict[str, Any]) -> Config:
    values = {
        "run": {"method": "opd" if "model" in teacher else "opsd"},
        "prompts": {"path": "p"},
        "learner": learner,
        "teacher": teacher,
    }
    return parse_config(values, source="test")


@pytest.mark.parametrize(
    ("revision", "commit"), [(None, NEW), ("main", NEW), ("v1", OLD), (OLD, OLD)]
)
def test_a_revision_chooses_the_commit(
    revision: str | None, commit: str, hub: Path
) -> None:
    folder = hub / "snapshots" / commit
    assert find_model("acme/tiny", revision) == folder
    assert resolve_model("acme/tiny", revision) == folder


@pytest.mark.usefixtures("hub")
def test_a_revision_that_is_not_here_is_named_offline() -> None:
    assert find_model("acme/tiny", "v9") is None
    with pytest.raises(UserError, match="not in the local hub cache at revision=v9"):
        resolve_model("acme/tiny", "v9")


def test_a_revision_of_a_local_folder_has_no_effect_and_is_refused(
    folder: Path,
) -> None:
    for find in (find_model, resolve_model):
        with pytest.raises(UserError, match="revision=v1 has no effect on a folder"):
            find(str(folder), "v1")


def test_student_and_teacher_have_revisions_of_their_own(hub: Path) -> None:
    config = config_of({"model": "acme/tiny"}, {"model": "acme/tiny", "revision": "v1"})
    assert find_student(config) == hub / "snapshots" / NEW
    assert find_teacher(config) == resolve_teacher(config) == hub / "snapshots" / OLD


def test_a_student_that_teaches_itself_has_one_revision(hub: Path) -> None:
    config = config_of({"model": "acme/tiny", "revision": "v1"}, {"source": "student"})
    assert find_teacher(config) == hub / "snapshots" / OLD
    pinned = with_pinned_revisions(config)
    assert pinned.learner.revision == OLD
    assert pinned.teacher.revision is None
    with pytest.raises(UserError, match=r"teacher\.revision=v1 .* set learner"):
        config_of({"model": "acme/tiny"}, {"source": "student", "revision": "v1"})


def test_a_pinned_config_takes_the_same_weights_when_the_branch_has_moved(
    hub: Path, folder: Path, tmp_path: Path
) -> None:
    config = config_of({"model": "acme/tiny"}, {"model": str(folder)})
    pinned = with_pinned_revisions(config)
    assert pinned.learner.revision == NEW
    assert pinned.teacher.revision is None
    assert with_pinned_revisions(pinned) == pinned
    (hub / "refs" / "main").write_text(OLD)
    kept = tmp_path / "kept.yaml"
    kept.write_text(dump_config(pinned))
    assert find_student(load_config(kept)) == hub / "snapshots" / NEW
    assert find_student(config) == hub / "snapshots" / OLD


def test_a_config_compares_equal_to_the_run_that_was_pinned_from_it(
    hub: Path, folder: Path
) -> None:
    config = config_of({"model": "acme/tiny"}, {"model": str(folder)})
    pinned = with_pinned_revisions(config)
    (hub / "refs" / "main").write_text(OLD)
    assert with_revisions_of(config, pinned) == pinned
    branch = config_of({"model": "acme/tiny", "revision": "main"}, {"model": "t"})
    assert with_revisions_of(branch, pinned).learner.revision == NEW


@pytest.mark.usefixtures("hub")
def test_another_model_or_another_commit_is_not_taken_from_an_earlier_run(
    folder: Path,
) -> None:
    pinned = with_pinned_revisions(
        config_of({"model": "acme/tiny"}, {"model": str(folder)})
    )
    for learner in (
        {"model": "acme/other"},
        {"model": "acme/tiny", "revision": OLD},
    ):
        config = config_of(learner, {"model": str(folder)})
        assert with_revisions_of(config, pinned) == config
