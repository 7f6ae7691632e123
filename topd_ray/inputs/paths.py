"""Config with relative paths -> config with absolute ones.

An actor may have another working directory than the driver: on a cluster that was
started by hand it is the one in which `ray start` ran. So the driver resolves every
path before it hands the config on.
"""

import os
from pathlib import Path

from topd_ray.config import Config
from topd_ray.contexts.prompt_forms import BUILT_IN
from topd_ray.errors import UserError
from topd_ray.models.folder import local_folder

_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets for the entry point of a submitted job alone."""


def refuse_passing_folder(config: Config) -> None:
    """Raise UserError where a submitted job would write its run into a passing folder.

    The job runs in an unpacked copy of the checkout, on the disk of one node, which Ray
    deletes when it needs room.
    """
    root = Path(config.run.root)
    if _SUBMITTED in os.environ and not root.is_absolute():
        raise UserError(
            f"run.root={root} in a submitted job: Ray deletes its working folder"
            f" {Path.cwd()} some time after it; give an absolute path on storage that"
            " every node sees"
        )


def with_absolute_paths(config: Config) -> Config:
    """Return the config with each local folder or file as an absolute path.

    A hub name stays a name, and so do the built-in forms `math` and `code`. A path that
    does not exist stays as it is, for the error that names it.
    """
    prompts = config.prompts.model_copy(
        update={
            "path": _absolute(config.prompts.path),
            "forms": _absolute_forms(config.prompts.forms),
        }
    )
    learner = config.learner.model_copy(
        update={"model": _absolute_model(config.learner.model)}
    )
    sections = {"prompts": prompts, "learner": learner}
    if config.teacher.model is not None:
        model = _absolute_model(config.teacher.model)
        sections["teacher"] = config.teacher.model_copy(update={"model": model})
    if config.evaluation.path is not None:
        path = _absolute(config.evaluation.path)
        sections["evaluation"] = config.evaluation.model_copy(update={"path": path})
    return config.model_copy(update=sections)


def _absolute_model(name: str) -> str:
    folder = local_folder(name)
    # `~` is expanded too: an actor may run under another home.
    return name if folder is None else str(folder.absolute())


def _absolute_forms(name: str) -> str:
    return name if name in BUILT_IN else _absolute(name)


def _absolute(name: str) -> str:
    path = Path(name)
    return str(path.absolute()) if path.exists() else name


__all__ = ["refuse_passing_folder", "with_absolute_paths"]
