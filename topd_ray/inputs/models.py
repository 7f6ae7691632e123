"""Config -> folders of student and teacher, refused where they do not fit.

Everything here is known before a process starts.
"""

import re
from pathlib import Path
from typing import NamedTuple

from topd_ray.config import Config
from topd_ray.contexts import load_forms
from topd_ray.errors import UserError
from topd_ray.models.architecture import check_names, check_tensors, joins_weights
from topd_ray.models.facts import check_context, read_facts
from topd_ray.models.folder import check_folder
from topd_ray.models.pair import compare_models
from topd_ray.models.refusals import check_logits
from topd_ray.models.roles import (
    find_student,
    find_teacher,
    resolve_student,
    resolve_teacher,
)
from topd_ray.models.splits import check_splits
from topd_ray.models.stop_ids import eos_ids
from topd_ray.models.vocabulary import check_vocabulary

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class CheckedModels(NamedTuple):
    """Folders that a run can use, and what it leaves out of them."""

    student: Path
    teacher: Path
    notes: list[str]
    """What the user should know, for example of tensors that are left out."""


def check_models(config: Config) -> CheckedModels:
    """Return the folders of student and teacher, both checked.

    Downloads a model that is not on this machine. Raises UserError for a model that is
    not whole, that a run cannot use, or that does not fit the other one.
    """
    student = resolve_student(config)
    teacher = resolve_teacher(config)
    return CheckedModels(student, teacher, _check_pair(config, student, teacher))


def check_what_is_here(config: Config) -> list[str]:
    """Check models and data as far as they are on this machine; download nothing.

    Returns notes on what is not here. Raises UserError as `check_models` does, and for
    a missing data file; but where neither model is here either, the config was written
    for another machine, and a missing file is a note.
    """
    student = find_student(config)
    teacher = find_teacher(config)
    notes = _model_notes(config, student, teacher)
    notes += _data_notes(config, refuse=student is not None or teacher is not None)
    if config.objective.context != "plain":
        load_forms(config.prompts.forms)
    if student is not None and teacher is not None:
        notes += _check_pair(config, student, teacher)
    return notes


def _model_notes(
    config: Config, student: Path | None, teacher: Path | None
) -> list[str]:
    notes: list[str] = []
    for field, name, folder in (
        ("learner.model", config.learner.model, student),
        ("teacher.model", config.teacher_model, teacher),
    ):
        if folder is not None:
            continue
        # A misspelt folder is found here, not when the hub is asked for it.
        if not _HUB_NAME.fullmatch(name):
            raise UserError(
                f"{field}={name}: no such folder, and no hub name (owner/model) either"
            )
        notes.append(
            f"{field}={name} is not on this machine; `topd train` will fetch it"
        )
    return notes


def _data_notes(config: Config, *, refuse: bool) -> list[str]:
    notes: list[str] = []
    for field, path in (
        ("prompts.path", config.prompts.path),
        ("evaluation.path", config.evaluation.path),
    ):
        if path is None or Path(path).exists():
            continue
        if refuse:
            raise UserError(
                f"{field}={path}: no such file or folder{_hint(config, field)}"
            )
        notes.append(f"{field}={path} is not on this machine")
    return notes


def _hint(config: Config, field: str) -> str:
    if field == "prompts.path" and config.objective.trajectory == "given":
        return "; `topd generate` writes the teacher's answers there"
    return ""


def _check_pair(config: Config, student: Path, teacher: Path) -> list[str]:
    """Return notes on two folders. Raises UserError where a run cannot use them."""
    notes: list[str] = []
    # Before the tensors, whose names would be the complaint.
    check_folder(student, role="student")
    check_names(student, field="learner.model")
    _refuse_experts_on_cpu(config, student)
    for folder, role, tokens in (
        (student, "student", config.student_context_tokens),
        (teacher, "teacher", config.teacher_context_tokens),
    ):
        # The folder first: the checks behind it read files that it has found whole.
        check_folder(folder, role=role)
        facts = read_facts(folder)
        check_context(facts, tokens, role=role)
        check_vocabulary(folder, facts, ends=eos_ids(folder), role=role)
        check_logits(folder, role=role)
        notes += check_tensors(folder, role=role)
    for field, folder, engine in (
        ("rollout.engine", student, config.rollout.engine),
        ("teacher.engine", teacher, config.teacher.engine),
        ("probe.engine", teacher, config.probe_engine),
    ):
        if engine is not None:
            check_splits(folder, engine, field=field)
    # Last, because it compares two folders that are sound by themselves.
    compare_models(student, teacher)
    return notes


def _refuse_experts_on_cpu(config: Config, student: Path) -> None:
    """Raise UserError where an engine could not load the weights of a student's update.

    vLLM packs the experts of a layer for a CPU's kernels, and then finds no room for
    new ones.
    """
    followers = [("rollout.engine", config.rollout.engine, config.decodes_rollouts)]
    follows = config.teacher.follow_every > 0
    followers.append(("teacher.engine", config.teacher.engine, follows))
    for field, engine, follows_student in followers:
        on_cpu = engine.backend == "vllm" and engine.gpus == 0
        if follows_student and on_cpu and joins_weights(student):
            raise UserError(
                f"learner.model: {student} is a mixture of experts, and vLLM on a CPU"
                " cannot load new weights of one; set"
                f" {field}.backend=hf, or give {field} a GPU, or take a dense student"
            )


__all__ = ["CheckedModels", "check_models", "check_what_is_here"]
