"""What can be refused before a process starts: models that do not fit each other or the
run.
"""

import re
from pathlib import Path

from topd_ray.config import Config
from topd_ray.contexts import load_forms
from topd_ray.errors import UserError
from topd_ray.models.folder import (
    check_context,
    check_folder,
    compare_models,
    find_model,
    read_facts,
    resolve_model,
)

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def check_models(config: Config) -> tuple[Path, Path]:
    """Resolve student and teacher (fetching them if need be) and check both; their
    folders.
    """
    student, teacher = (
        resolve_model(config.learner.model),
        resolve_model(config.teacher_model),
    )
    _check_pair(config, student, teacher)
    return student, teacher


def check_what_is_here(config: Config) -> list[str]:
    """The same without any download, as far as files are on this machine; notes on the
    rest.

    A missing data file is refused, unless neither model is here either: then the config
    was written for another machine, and what is missing is noted.
    """
    models = {
        "learner.model": config.learner.model,
        "teacher.model": config.teacher_model,
    }
    found = {field: find_model(name) for field, name in models.items()}
    for field, name in models.items():
        if found[field] is None and not _HUB_NAME.fullmatch(name):
            raise UserError(
                f"{field}={name}: no such folder, and no hub name (owner/model) either"
            )
    notes = [
        f"{field}={models[field]} is not on this machine; `topd train` will fetch it"
        for field, folder in found.items()
        if folder is None
    ]
    data = {
        "prompts.path": config.prompts.path,
        "evaluation.path": config.evaluation.path,
    }
    for field, path in data.items():
        if path is not None and not Path(path).exists():
            if any(found.values()):
                hint = (
                    "; `topd generate` writes the teacher's answers there"
                    if field == "prompts.path"
                    and config.objective.trajectory == "given"
                    else ""
                )
                raise UserError(f"{field}={path}: no such file or folder{hint}")
            notes.append(f"{field}={path} is not on this machine")
    if config.objective.context != "plain":
        load_forms(config.prompts.forms)
    student, teacher = found["learner.model"], found["teacher.model"]
    if student is not None and teacher is not None:
        _check_pair(config, student, teacher)
    return notes


def _check_pair(config: Config, student: Path, teacher: Path) -> None:
    for folder, role, tokens in (
        (student, "student", config.student_context_tokens),
        (teacher, "teacher", config.teacher_context_tokens),
    ):
        check_folder(folder, role=role)
        check_context(read_facts(folder), tokens, role=role)
    compare_models(student, teacher)
