"""Metrics, rollouts and figures of a run to Weights & Biases: one W&B run for one run
folder.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from topd_ray.config import Config
from topd_ray.errors import UserError, first_line
from topd_ray.records.run_folder import RunFolder, write_whole
from topd_ray.records.samples import COLUMNS, StepSamples


class WandbLog:
    """The W&B run of a run folder, continued by every session that works on it."""

    name = "wandb"

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Open the W&B run. Raises UserError where W&B refuses it."""
        import wandb

        self._wandb: Any = wandb
        try:
            self._run: Any = wandb.init(
                project=config.records.wandb_project,
                name=config.run.name,
                id=_run_id(folder),
                resume="allow",
                dir=str(folder.path),
                config=config.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise UserError(
                f"records.trackers has wandb, which says: {first_line(error)}; set"
                " WANDB_MODE=offline to log to the run folder alone"
            ) from None
        # W&B numbers the calls of `log` and drops a number that is not the highest so
        # far. A run that goes back to a checkpoint repeats steps, so the step is a
        # metric like the others and the x axis of all of them.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Log the metrics of one step; `step` is among them."""
        self._run.log(dict(metrics))

    def show(self, samples: StepSamples) -> None:
        """Log rollouts as a table, and figures."""
        shown: dict[str, Any] = {
            name: self._wandb.Image(image) for name, image in samples.images.items()
        }
        if samples.rows:
            rows = [list(row) for row in samples.rows]
            shown["rollouts"] = self._wandb.Table(columns=list(COLUMNS), data=rows)
        if shown:
            self._run.log({"step": samples.step, **shown})

    def go_back(self, last_step: int) -> None:
        """Do nothing: W&B forgets no step."""

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
