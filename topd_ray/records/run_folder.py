"""The run folder: what lies where, and how a file gets there whole."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topd_ray.config import Config, dump_config, load_config
from topd_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths below `runs/<name>/`."""

    path: Path

    @classmethod
    def create(cls, config: Config) -> "RunFolder":
        """Make a folder with the resolved config in it.

        Raises UserError where a run is in the way.
        """
        folder = cls.of(config)
        # The config marks a run; `existing` looks for it too.
        if folder.config.exists():
            raise UserError(
                f"{folder.path}: a run of this name exists; continue it with "
                f"`topd resume {folder.path}`, or choose another run.name"
            )
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            write_whole(folder.config, dump_config(config))
        except OSError as error:
            raise UserError(
                f"run.root={config.run.root}: no run folder can be written there"
                f" ({error.strerror}); choose another run.root"
            ) from None
        return folder

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        """Return where the run of a config lies or will lie."""
        return cls(Path(config.run.root).absolute() / config.run.name)

    @classmethod
    def existing(cls, path: Path) -> tuple["RunFolder", Config]:
        """Return a folder that `create` made, and its config."""
        folder = cls(path.absolute())
        if not folder.config.is_file():
            raise UserError(f"{path}: no run folder (no config.yaml in it)")
        return folder, load_config(folder.config)

    def replace_config(self, config: Config) -> None:
        """Write a config that was changed; a finished run is finished no longer.

        Only a process that holds the run's lock may.
        """
        write_whole(self.config, dump_config(config))
        self.summary.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock. Raises UserError where another process holds it."""
        # To open for writing would erase the holder's name before the lock is known to
        # be free.
        with (self.path / ".lock").open("a+", encoding="utf-8") as file:
            try:
                # The kernel releases the lock of a process that is killed; a mark in
                # the file would stay.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise UserError(
                    f"{self.path}: {file.read().strip() or 'another process'} works on"
                    " this run; wait for it, or end it first"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One JSON line for each drop, skip and checkpoint."""
        return self.path / "events.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard."""
        return self.path / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        """Id of the run's W&B run, where `records.trackers` has `wandb`."""
        return self.path / "wandb-id.txt"

    @property
    def mlflow(self) -> Path:
        """MLflow's files, where `records.trackers` has `mlflow`."""
        return self.path / "mlflow"

    @property
    def mlflow_id(self) -> Path:
        """Id of the run's MLflow run."""
        return self.path / "mlflow-id.txt"

    @property
    def trace(self) -> Path:
        """Every call of every actor, where `run.trace` is set."""
        return self.path / "trace.json"

    @property
    def windows(self) -> Path:
        """Parquet, one file a step and learner rank, by `window_file.SCHEMA`."""
        return self.path / "windows"

    @property
    def rollouts(self) -> Path:
        """Parquet, one file a step and learner rank, by `rollout_file.SCHEMA`."""
        return self.path / "rollouts"

    @property
    def timeline(self) -> Path:
        """Parquet, one file a step, by `timeline_file.SCHEMA`."""
        return self.path / "timeline"

    @property
    def dumps(self) -> Path:
        """`step_N/` of steps whose update was skipped, for `topd replay`."""
        return self.path / "dumps"

    @property
    def logs(self) -> Path:
        """What each actor wrote on stdout and stderr."""
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        """`step_N/` folders and `latest`."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """The trained student as a Hugging Face folder."""
        return self.path / "export"

    @property
    def summary(self) -> Path:
        """Written last."""
        return self.path / "summary.json"


def write_whole(path: Path, text: str) -> None:
    """Write aside, flush to disk, rename: a reader sees the old file or the new one."""
    # In the same folder, because a rename is atomic inside one file system only.
    aside = path.with_name(path.name + ".partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write readable JSON by `write_whole`."""
    write_whole(path, json.dumps(value, indent=2) + "\n")
