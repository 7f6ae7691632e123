"""Metrics of a run to Weights & Biases: one W&B run for one run folder."""

import uuid
from collections.abc import Mapping
from typing import Any

from topd_ray.config import Config
from topd_ray.errors import UserError
from topd_ray.records.run_folder import RunFolder, write_whole


class WandbLog:
    """The W&B run of a run folder, continued by every session that works on it."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Open the W&B run. Raises UserError where the package is not installed."""
        try:
            import wandb
        except ImportError:
            raise UserError(
                "records.trackers has wandb, and the wandb package is not installed;"
                " `pip install wandb`, or leave it out"
            ) from None
        self._run: Any = wandb.init(
            project=config.records.wandb_project,
            name=config.run.name,
            id=_run_id(folder),
            resume="allow",
            dir=str(folder.path),
            config=config.model_dump(mode="json"),
        )
        # W&B numbers the calls of `log` and drops a number that is not the highest so
        # far. A run that goes back to a checkpoint repeats steps, so the step is a
        # metric like the others and the x axis of all of them.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Log the metrics of one step; `step` is among them."""
        self._run.log(dict(metrics))

    def close(self, *, failed: bool) -> None:
        """Send what is left and mark the W&B run as finished or failed."""
        self._run.finish(exit_code=int(failed))


def _run_id(folder: RunFolder) -> str:
    """Return the id in the run folder; the first session draws it and writes it there.

    W&B starts another run for `resume="allow"` without an id. The name of the run is no
    id, because two run folders of one name may log to the same project.
    """
    if not folder.wandb_id.is_file():
        write_whole(folder.wandb_id, uuid.uuid4().hex + "\n")
    return folder.wandb_id.read_text(encoding="utf-8").strip()
