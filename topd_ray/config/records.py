"""The config section of what a run records beside its metrics."""

from typing import Literal, Self

from pydantic import NonNegativeInt, model_validator

from topd_ray.config.base import Name, Section

Tracker = Literal["tensorboard", "wandb", "mlflow"]
"""A program that shows runs as they go on."""


class RecordsConfig(Section):
    """What a run records to be looked at, and which trackers show it.

    At the defaults a step of the paper's size leaves 1.3 MB and costs 0.1 % of its time
    (`benchmarks/bench_records.py`).
    """

    max_windows_per_step: NonNegativeInt = 64
    """Windows of a step whose transport plan and likeliest ids are recorded, about 4 kB
    each at K = 50. All other windows are recorded without them. 0: `windows/` is not
    written.
    """
    max_rollouts_per_step: NonNegativeInt = 16
    """Rollouts of a step that are recorded token by token, about 20 bytes a token: a
    draw in which each has the same chance. 0: `rollouts/` is not written.
    """
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where the metrics go beside `metrics.jsonl`, and after the first step and with
    each checkpoint the recorded rollouts as a table, D_OT and token loss as figures.
    `wandb` and `mlflow` need the package of that name. MLflow writes into the run
    folder, or to `MLFLOW_TRACKING_URI`.
    """
    wandb_project: Name | None = None
    """Weights & Biases project of the tracker `wandb`; by default that of the account.
    """

    @model_validator(mode="after")
    def _each_tracker_is_one_and_a_project_has_its_own(self) -> Self:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(
                f"trackers={list(self.trackers)}: one is named twice; drop it"
            )
        if self.wandb_project is not None and "wandb" not in self.trackers:
            raise ValueError(
                f"wandb_project={self.wandb_project} with trackers="
                f"{list(self.trackers)}: nothing is logged there; add wandb to"
                " records.trackers, or drop the project"
            )
        return self


__all__ = ["RecordsConfig", "Tracker"]
