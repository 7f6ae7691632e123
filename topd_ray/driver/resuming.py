"""What may be different when a run is resumed: fields of its config, and its files."""

from collections.abc import Collection, Sequence
from pathlib import Path

from topd_ray.config import Config, load_config
from topd_ray.config.changes import Change, changes, refuse_unchangeable
from topd_ray.driver.checkpoint import Checkpoint
from topd_ray.errors import UserError
from topd_ray.inputs.fingerprints import Fingerprints
from topd_ray.inputs.paths import with_absolute_paths
from topd_ray.records.run_folder import RunFolder

SHOWN_DIGITS = 8
_LENGTH = ("run.steps", "prompts.epochs")
"""Fields that a finished run is extended by."""


def changed_config(
    folder: RunFolder, old: Config, overrides: Sequence[str]
) -> tuple[Config, list[Change]]:
    """Return a run's config with overrides, and what they change.

    Raises UserError for a field that a run in progress may not change.
    """
    new = with_absolute_paths(load_config(folder.config, overrides))
    changed = changes(with_absolute_paths(old), new)
    refuse_unchangeable(
        changed, way_out="start another run: `topd train` with another run.name"
    )
    return new, changed


def is_extended(changed: Sequence[Change]) -> bool:
    """Return whether changes set another length of the run."""
    return any(change.field in _LENGTH for change in changed)


def refuse_finished(folder: RunFolder, changed: Sequence[Change]) -> None:
    """Raise UserError where a run is finished and is not to be extended."""
    if folder.summary.is_file() and not is_extended(changed):
        raise UserError(
            f"{folder.path}: this run is finished (summary.json); `topd resume"
            f" {folder.path} run.steps=N` extends it to N steps"
        )


def refuse_fewer_steps(folder: RunFolder, *, done: int, total: int) -> None:
    """Raise UserError where a run has done more steps than it is to have, or all."""
    is_finished = folder.summary.is_file()
    if done > total or (is_finished and done == total):
        raise UserError(
            f"run.steps: the run in {folder.path} has done {done} steps, and would have"
            f" {total}; set run.steps to more, or resume an earlier --checkpoint"
        )


def changed_inputs(
    checkpoint: Checkpoint | None, now: Fingerprints, *, accept: Collection[str]
) -> list[str]:
    """Return the names of files that changed since a checkpoint and were accepted.

    Args:
        checkpoint: None where the run starts anew, with the files that are there.
        now: Fingerprints of the files as they are.
        accept: Fields whose change the user accepts, such as `prompts.path`.

    Raises:
        UserError: A file has changed and its field is not in `accept`, or `accept`
            holds what is no field of a file.
    """
    known = {name.partition("/")[0] for name in now}
    for field in accept:
        if field not in known:
            raise UserError(
                f"--accept {field}: expected one of {', '.join(sorted(known))}"
            )
    if checkpoint is None:
        return []
    then = _fingerprints(checkpoint)
    differ = [name for name in then | now if then.get(name) != now.get(name)]
    refused = [name for name in differ if name.partition("/")[0] not in accept]
    if refused:
        listed = "; ".join(
            f"{name} ({_short(then.get(name))}, now {_short(now.get(name))})"
            for name in refused
        )
        fields = dict.fromkeys(name.partition("/")[0] for name in refused)
        options = " ".join(f"--accept {field}" for field in fields)
        raise UserError(
            f"changed since {checkpoint.path.name} of {_run_of(checkpoint)} was"
            f" written: {listed}; put the files back, or resume with {options} if the"
            " run should go on with what is there now"
        )
    return differ


def _fingerprints(checkpoint: Checkpoint) -> Fingerprints:
    inputs = checkpoint.driver.get("inputs")
    if not isinstance(inputs, dict):
        raise UserError(
            f"{checkpoint.path}: driver.json names no inputs, so it is not what a run"
            " of this version writes; resume from another one with --checkpoint"
        )
    return {str(name): str(digest) for name, digest in inputs.items()}


def _short(digest: str | None) -> str:
    return "not there" if digest is None else digest[:SHOWN_DIGITS]


def _run_of(checkpoint: Checkpoint) -> Path:
    return checkpoint.path.parents[1]


__all__ = [
    "changed_config",
    "changed_inputs",
    "is_extended",
    "refuse_fewer_steps",
    "refuse_finished",
]
