"""Programs that show runs as they go on: what each of them must be able to do."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Protocol

from topd_ray.config import Config
from topd_ray.errors import TopdError, UserError
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.samples import StepSamples


class TrackerError(TopdError):
    """A tracker that takes nothing more, such as a server that does not answer."""


class RunTracker(Protocol):
    """One run in one tracker, continued by every session that works on the run."""

    name: str
    """As `records.trackers` names it."""

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Log the metrics of one step; `step` is among them."""

    def show(self, samples: StepSamples) -> None:
        """Show rollouts and figures of a step."""

    def go_back(self, last_step: int) -> None:
        """Forget the steps after `last_step`, as far as the tracker can."""

    def close(self, *, failed: bool) -> None:
        """Send what is left."""


def open_trackers(
    config: Config, folder: RunFolder, *, last_step: int
) -> Iterator[RunTracker]:
    """Yield the run in each tracker that the config names."""
    # Each is imported only where it is asked for: two are no dependencies.
    for name in config.records.trackers:
        if name == "tensorboard":
            from topd_ray.records.tensorboard_log import TensorboardLog

            yield TensorboardLog(folder, last_step=last_step)
        elif name == "wandb":
            from topd_ray.records.weights_and_biases import WandbLog

            yield WandbLog(config, folder)
        else:
            from topd_ray.records.mlflow_log import MlflowLog

            yield MlflowLog(config, folder)


def refuse_missing_trackers(config: Config) -> None:
    """Raise UserError where the package of a tracker is not installed."""
    for name in ("wandb", "mlflow"):
        if name in config.records.trackers and find_spec(name) is None:
            raise UserError(
                f"records.trackers={list(config.records.trackers)}: the package {name}"
                f" is not installed; `pip install {name}`, or leave it out"
            )


__all__ = ["RunTracker", "TrackerError", "open_trackers", "refuse_missing_trackers"]
