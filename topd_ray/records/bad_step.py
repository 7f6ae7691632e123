"""Dumps of bad steps: what a step was made of, kept for `topd replay`.

dumps/step_N/   step.json   rollouts.safetensors   student/ (as the step found it)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from topd_ray.errors import UserError
from topd_ray.messages import Rollout
from topd_ray.records.run_folder import write_json

STUDENT = "student"
_STEP = "step.json"
_ROLLOUTS = "rollouts.safetensors"
# Names of arrays end in their axes (`logp_O`), which tells them from plain fields.
_ARRAYS = tuple(
    field.name for field in fields(Rollout) if field.name.split("_")[-1].isupper()
)
_PLAIN = tuple(field.name for field in fields(Rollout) if field.name not in _ARRAYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadStep:
    """Why a step was skipped."""

    step: int
    complaints: list[str]
    suspects: list[str]
    """Rollouts that may be the cause."""
    threshold: float | None
    """D_OT above which a window diverges (D7).

    None where the step was to take it from its own probes.
    """


def write_rollouts(folder: Path, rollouts: Sequence[Rollout]) -> None:
    """Write token ids and log-probabilities of the rollouts; make the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = [{name: getattr(rollout, name) for name in _PLAIN} for rollout in rollouts]
    arrays = {
        # safetensors writes a strided array with the wrong values, without an error.
        f"{index}.{name}": np.ascontiguousarray(getattr(rollout, name))
        for index, rollout in enumerate(rollouts)
        for name in _ARRAYS
    }
    save_file(arrays, folder / _ROLLOUTS, metadata={"rollouts": json.dumps(plain)})


def write_step(folder: Path, step: BadStep) -> None:
    """Write the step's file, the last one: a folder without it is no dump."""
    write_json(folder / _STEP, asdict(step))


def read_dump(folder: Path) -> tuple[BadStep, list[Rollout]]:
    """Return the step and its rollouts.

    Raises UserError where the folder is no dump, or not a whole one.
    """
    try:
        # A dump of another version may lack a field or have one more: a TypeError.
        step = BadStep(**json.loads((folder / _STEP).read_text(encoding="utf-8")))
        arrays = load_file(folder / _ROLLOUTS)
        plain = json.loads(_metadata(folder / _ROLLOUTS)["rollouts"])
        rollouts = [
            _rollout(values, index, arrays) for index, values in enumerate(plain)
        ]
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{folder}: not a dump of a step ({type(error).__name__}: {error}); a run"
            " that skips a step leaves one in dumps/"
        ) from None
    return step, rollouts


def _rollout(plain: dict[str, Any], index: int, arrays: Mapping[str, Any]) -> Rollout:
    return Rollout(**plain, **{name: arrays[f"{index}.{name}"] for name in _ARRAYS})


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    # load_file leaves the metadata out.
    with safe_open(path, "np") as file:
        return dict(file.metadata() or {})
