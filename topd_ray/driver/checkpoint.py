"""A checkpoint: learner shards and the driver's books, whole or not there at all."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topd_ray.driver.calls import Caller
from topd_ray.driver.folder import RunFolder, write_json, write_whole
from topd_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A finished checkpoint folder and the driver's state in it."""

    path: Path
    driver: dict[str, Any]


async def save_checkpoint(
    folder: RunFolder,
    learners: Sequence[Any],
    caller: Caller,
    *,
    step: int,
    driver: dict[str, Any],
    keep: int,
) -> Path:
    """Write aside, move into place, then point `latest` at it, then drop the oldest."""
    target = folder.checkpoints / f"step_{step}"
    aside = folder.checkpoints / f".step_{step}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    await caller.all(
        [
            caller.call(f"learner[{rank}]", "save", actor.save.remote(aside))
            for rank, actor in enumerate(learners)
        ]
    )
    write_json(aside / "driver.json", driver)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    write_whole(folder.checkpoints / "latest", target.name + "\n")
    for old in _finished(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: RunFolder) -> Checkpoint | None:
    """What `latest` points at; None where the run never got to a checkpoint."""
    pointer = folder.checkpoints / "latest"
    if not pointer.is_file():
        return None
    path = folder.checkpoints / pointer.read_text(encoding="utf-8").strip()
    try:
        return Checkpoint(path, json.loads((path / "driver.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{pointer}: points at {path.name}, which cannot be read ({error}); "
            "put the name of another checkpoint folder into it"
        ) from None


def _finished(folder: RunFolder) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(
        folder.checkpoints.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_"))
    )
