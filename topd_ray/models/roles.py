"""Config -> folders of its student and its teacher, and the commits they come from."""

import re
from pathlib import Path

from topd_ray.config import Config
from topd_ray.models.folder import find_model, local_folder, resolve_model

_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_student(config: Config) -> Path:
    """Return the student's folder; downloads the model where it is not here yet."""
    return resolve_model(config.learner.model, config.learner.revision)


def resolve_teacher(config: Config) -> Path:
    """Return the teacher's folder; downloads the model where it is not here yet."""
    return resolve_model(config.teacher_model, config.teacher_revision)


def find_student(config: Config) -> Path | None:
    """Return the student's folder if it is on this machine; no network."""
    return find_model(config.learner.model, config.learner.revision)


def find_teacher(config: Config) -> Path | None:
    """Return the teacher's folder if it is on this machine; no network."""
    return find_model(config.teacher_model, config.teacher_revision)


def with_pinned_revisions(config: Config) -> Config:
    """Return the config with the commits of its hub models in the place of branches.

    A run that is resumed later takes the same weights, even if the model's branch has
    moved on. Downloads what is not on this machine; a local folder has no commit.
    """
    learner = config.learner
    teacher = config.teacher
    commit = _commit(learner.model, resolve_student(config))
    learner = learner.model_copy(update={"revision": commit})
    # Otherwise the teacher is the student, whose commit is pinned already.
    if teacher.model is not None:
        commit = _commit(teacher.model, resolve_teacher(config))
        teacher = teacher.model_copy(update={"revision": commit})
    return config.model_copy(update={"learner": learner, "teacher": teacher})


def with_revisions_of(config: Config, earlier: Config) -> Config:
    """Return the config with the commits that an earlier run of it was pinned to.

    They are taken for models of the same name, unless the config names a commit. So a
    config can be compared with that of a run folder without asking the hub where a
    branch is.
    """
    learner = config.learner
    if learner.model == earlier.learner.model and not _is_commit(learner.revision):
        learner = learner.model_copy(update={"revision": earlier.learner.revision})
    teacher = config.teacher
    if teacher.model == earlier.teacher.model and not _is_commit(teacher.revision):
        teacher = teacher.model_copy(update={"revision": earlier.teacher.revision})
    return config.model_copy(update={"learner": learner, "teacher": teacher})


def _is_commit(revision: str | None) -> bool:
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def _commit(name: str, folder: Path) -> str | None:
    # In the hub's cache a model's folder is called snapshots/COMMIT.
    return None if local_folder(name) is not None else folder.name


__all__ = [
    "find_student",
    "find_teacher",
    "resolve_student",
    "resolve_teacher",
    "with_pinned_revisions",
    "with_revisions_of",
]
