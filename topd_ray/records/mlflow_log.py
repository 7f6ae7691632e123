"""Metrics, rollouts and figures of a run to MLflow: one MLflow run for one run
folder.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from topd_ray.config import Config, dump_config
from topd_ray.records.run_folder import RunFolder, write_whole
from topd_ray.records.samples import COLUMNS, StepSamples
from topd_ray.records.trackers import TrackerError

_EXPERIMENT = "topd_ray"
"""Where `MLFLOW_EXPERIMENT_NAME` names no other."""


class MlflowLog:
    """The MLflow run of a run folder, continued by every session that works on it.

    It lies in the run folder, or at `MLFLOW_TRACKING_URI`. Steps done again after a
    checkpoint are logged again; MLflow shows the last value of a step.
    """

    name = "mlflow"

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Open the MLflow run. Raises TrackerError where MLflow refuses it."""
        # Here, because the package is no dependency.
        from mlflow import MlflowClient
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            uri = folder.mlflow.as_uri()
            # MLflow asks for this consent to a store that needs no data base.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # A run sends nothing to a server that its user has not named.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._metric: Any = Metric
        self._error: type[Exception] = MlflowException
        with self._answering():
            self._client: Any = MlflowClient(tracking_uri=uri)
            self._id = self._run_id(config, folder)

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Log the metrics of one step; `step` is among them."""
        at_ms = int(time.time() * 1000)
        step = int(metrics["step"])
        points = [
            self._metric(_file_name(name), float(value), at_ms, step)
            for name, value in metrics.items()
            if name != "step"
        ]
        with self._answering():
            self._client.log_batch(self._id, metrics=points)

    def show(self, samples: StepSamples) -> None:
        """Log a table and images as artifacts, with the step in their names."""
        stem = f"step_{samples.step:06d}"
        with self._answering():
            if samples.rows:
                columns = [list(column) for column in zip(*samples.rows, strict=True)]
                table = dict(zip(COLUMNS, columns, strict=True))
                file = f"rollouts/{stem}.json"
                self._client.log_table(self._id, table, file)
            for name, image in samples.images.items():
                self._client.log_image(self._id, image, f"{name}/{stem}.png")

    def go_back(self, last_step: int) -> None:
        """Do nothing: MLflow forgets no step."""

    def close(self, *, failed: bool) -> None:
        """Mark the MLflow run as finished or failed."""
        with self._answering():
            self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")

    def _run_id(self, config: Config, folder: RunFolder) -> str:
        """Return the id in the run folder; the first session makes the run."""
        if folder.mlflow_id.is_file():
            run_id = folder.mlflow_id.read_text(encoding="utf-8").strip()
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = (
            self._client.create_experiment(name)
            if experiment is None
            else experiment.experiment_id
        )
        run = self._client.create_run(experiment_id, run_name=config.run.name)
        run_id = str(run.info.run_id)
        self._client.log_text(run_id, dump_config(config), "config.yaml")
        write_whole(folder.mlflow_id, run_id + "\n")
        return run_id

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn MLflow's error into one that says what to do."""
        try:
            yield
        except self._error as error:
            raise TrackerError(f"mlflow: {error}") from None


def _file_name(metric: str) -> str:
    """Return the metric's name in MLflow, whose store makes a file of it.

    `loss` cannot be a file beside the folder of `loss/opd`.
    """
    return "loss/total" if metric == "loss" else metric


__all__ = ["MlflowLog"]
