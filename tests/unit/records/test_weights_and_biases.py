"""A run folder is one W&B run, however often the run stops and goes back."""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from topd_ray.config import Config, parse_config
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.weights_and_biases import WandbLog


class FakeWandb:
    """What W&B keeps: histories by run id, where each call of `log` must move on."""

    def __init__(self) -> None:
        self.histories: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.calls: list[dict[str, Any]] = []
        self.x_axes: dict[str, str | None] = {}
        self.exit_codes: list[int] = []

    def init(self, **settings: Any) -> "FakeWandb":
        self.calls.append(settings)
        self._id = settings.get("id") or f"drawn-{len(self.histories)}"
        self._next = len(self.histories[self._id])
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.x_axes[name] = step_metric

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        number = self._next if step is None else step
        if number >= self._next:  # W&B warns and drops the others
            self.histories[self._id].append(values)
            self._next = number + 1

    def finish(self, *, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def a_run(root: Path, name: str) -> tuple[Config, RunFolder]:
    values = {
        "run": {"root": str(root), "name": name},
        "records": {"trackers": ["wandb"], "wandb_project": "topd"},
        "prompts": {"path": "p"},
        "teacher": {"model": "t"},
        "learner": {"model": "s"},
    }
    config = parse_config(values, source="test")
    return config, RunFolder.create(config)


def session(config: Config, folder: RunFolder, steps: list[int]) -> None:
    log = WandbLog(config, folder)
    for step in steps:
        log.log({"step": step, "loss": 1 / step})
    log.close(failed=False)


def test_steps_done_again_after_a_checkpoint_are_logged_to_the_same_run(
    wandb: FakeWandb, tmp_path: Path
) -> None:
    config, folder = a_run(tmp_path, "r")
    session(config, folder, [1, 2, 3])
    session(config, folder, [2, 3, 4])
    (history,) = wandb.histories.values()
    assert [row["step"] for row in history] == [1, 2, 3, 2, 3, 4]
    assert wandb.x_axes == {"step": None, "*": "step"}


def test_two_run_folders_of_one_name_are_two_runs(
    wandb: FakeWandb, tmp_path: Path
) -> None:
    session(*a_run(tmp_path / "here", "r"), [1])
    session(*a_run(tmp_path / "there", "r"), [1])
    assert len(wandb.histories) == 2
    assert [call["name"] for call in wandb.calls] == ["r", "r"]


def test_the_run_is_named_resumable_and_keeps_its_files_in_the_run_folder(
    wandb: FakeWandb, tmp_path: Path
) -> None:
    config, folder = a_run(tmp_path, "r")
    log = WandbLog(config, folder)
    log.close(failed=True)
    (call,) = wandb.calls
    assert (call["project"], call["resume"]) == ("topd", "allow")
    assert call["dir"] == str(folder.path)
    assert call["id"] == folder.wandb_id.read_text().strip()
    assert call["config"]["run"]["name"] == "r"
    assert wandb.exit_codes == [1]
