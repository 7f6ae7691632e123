"""Trackers get numbers, rollouts and figures, and tell them again: the real ones."""

import dataclasses
import html
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.make import probes, scored
from topd_ray.config import Config, RecordsConfig, parse_config
from topd_ray.errors import UserError
from topd_ray.records.metrics import MetricsLog
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.samples import COLUMNS, StepSamples, step_samples
from topd_ray.records.step_recorder import StepRecorder
from topd_ray.records.trackers import RunTracker, TrackerError, refuse_missing_trackers

HOSTILE = "<script>alert('x')</script> | `**a**` \u202edlrow\nhalf \ufffd"
"""What a model may write: markup, a table's bar, an override of the direction, half a
character.
"""


def a_run(root: Path, *trackers: str) -> tuple[Config, RunFolder]:
    values = {
        "run": {"root": str(root), "name": "r"},
        "records": {"trackers": list(trackers)},
        "prompts": {"path": "p"},
        "teacher": {"model": "t"},
        "learner": {"model": "s"},
    }
    config = parse_config(values, source="test")
    return config, RunFolder.create(config)


def hostile(ids: Sequence[int]) -> str:
    return HOSTILE if len(ids) > 1 else "\x1b[31m"


def recorded_samples(folder: RunFolder, step: int = 2) -> StepSamples:
    """The samples of a step with two rollouts, one of them with three windows."""
    recorder = StepRecorder(RecordsConfig(), folder)
    windows = probes(
        positions=(1, 2, 3),
        distances=(0.9, 0.1, math.nan),
        num_student=(3, 3, 3),
    )
    loss_N = np.array([0.1, 7.0, 0.0, 0.4, 0.2], np.float32)
    read = dataclasses.replace(scored("r0"), token_loss_N=loss_N)
    recorder.add([read, scored("r1")], [windows], {}, 0.5)
    recorder.write(step, lambda _, __: None)
    return step_samples(folder, step, hostile)


def test_a_row_says_what_happened_to_a_rollout_with_escaped_text(
    tmp_path: Path,
) -> None:
    samples = recorded_samples(RunFolder(tmp_path))
    first, second = (dict(zip(COLUMNS, row, strict=True)) for row in samples.rows)
    assert (first["rollout_id"], second["rollout_id"]) == ("r0", "r1")
    assert (first["num_windows"], first["num_divergent"]) == (3, 1)
    assert first["max_d_ot"] == pytest.approx(0.9)
    assert (first["max_token_loss"], first["max_loss_token"]) == (7.0, r"\x1b[31m")
    assert (second["num_windows"], second["max_d_ot"]) == (0, None)
    assert first["takeover"] is first["takeover_position"] is None
    assert "\u202e" not in str(first["response"])
    assert r"\u202edlrow" in str(first["response"])
    for image in samples.images.values():
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
    assert set(samples.images) == {"d_ot", "token_loss"}


def test_a_long_response_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    recorded_samples(folder)
    samples = step_samples(folder, 2, lambda _: "a" * 50_000 + "z")
    response = str(samples.rows[0][COLUMNS.index("response")])
    assert len(response) < 2100
    assert (response[0], response[-1]) == ("a", "z")


def test_a_step_without_records_has_no_samples(tmp_path: Path) -> None:
    assert step_samples(RunFolder(tmp_path), 1, hostile) == StepSamples(1, [], {})


def logged(root: Path, tracker: str) -> RunFolder:
    """Log steps 1 to 3, go back to 1 in a second session, and log 2 and 3 again."""
    config, folder = a_run(root, tracker)
    samples = recorded_samples(folder)
    with MetricsLog(config, folder, last_step=0) as log:
        for step in (1, 2, 3):
            log.log({"step": step, "loss": 1.5, "loss/opd": 1.0 / step})
    with MetricsLog(config, folder, last_step=1) as log:
        for step in (2, 3):
            log.log({"step": step, "loss": 1.5, "loss/opd": 2.0 / step})
        log.show(samples)
        assert log.has_trackers
    assert not folder.events.read_text()
    return folder


def test_tensorboard_shows_numbers_rollouts_and_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html

    folder = logged(tmp_path, "tensorboard")
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss/opd")] == [
        (1, 1.0),
        (2, 1.0),
        (3, pytest.approx(2 / 3)),
    ]
    (text,) = events.Tensors("rollouts/text_summary")
    page = markdown_to_safe_html(text.tensor_proto.string_val[0])
    assert page.count("<tr>") == 3
    assert page.count("<td>") == 2 * (len(COLUMNS) - 1)
    assert not any(tag in page for tag in ("<script", "<strong>", "<code>"))
    shown = HOSTILE.replace("\u202e", r"\u202e").replace("\n", "\u23ce")
    assert f"<td>{shown}</td>" in html.unescape(page)
    for name in ("d_ot", "token_loss"):
        (image,) = events.Images(name)
        assert image.step == 2
        assert image.encoded_image_string.startswith(b"\x89PNG")


def test_mlflow_keeps_numbers_rollouts_and_figures_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # Kept from other tests: MLflow's consent is set where the run's is opened.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = logged(tmp_path, "mlflow")
    (run,) = (path.parent for path in folder.mlflow.glob("*/*/metrics"))
    assert run.name == folder.mlflow_id.read_text().strip()
    assert (run / "metrics" / "loss" / "total").is_file()
    points = (run / "metrics" / "loss" / "opd").read_text().splitlines()
    assert [int(point.split()[2]) for point in points] == [1, 2, 3, 2, 3]
    artifacts = run / "artifacts"
    table = json.loads((artifacts / "rollouts" / "step_000002.json").read_text())
    assert table["columns"] == list(COLUMNS)
    assert [row[1] for row in table["data"]] == ["r0", "r1"]
    for name in ("d_ot", "token_loss"):
        assert (artifacts / name / "step_000002.png").is_file()
    assert "trackers" in (artifacts / "config.yaml").read_text()
    assert "status: 3" in (run / "meta.yaml").read_text()  # FINISHED


def test_weights_and_biases_keeps_numbers_rollouts_and_figures_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = logged(tmp_path, "wandb")
    runs = sorted(folder.path.glob("wandb/offline-run-*"))
    run_id = folder.wandb_id.read_text().strip()
    assert len(runs) == 2  # a session each, of one id
    for run in runs:
        assert (run / f"run-{run_id}.wandb").is_file()
    (file,) = runs[1].glob("files/media/table/rollouts_*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == list(COLUMNS)
    assert [row[1] for row in table["data"]] == ["r0", "r1"]
    images = [path.name for path in runs[1].glob("files/media/images/*.png")]
    assert sorted(name.split("_")[0] for name in images) == ["d", "token"]


class LostTracker:
    """A tracker whose server goes away after the first step."""

    name = "lost"

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, metrics: Any) -> None:
        self.steps.append(metrics["step"])
        if metrics["step"] == 2:
            raise TrackerError("lost: no answer")

    def show(self, samples: StepSamples) -> None:
        raise AssertionError(samples)

    def go_back(self, last_step: int) -> None:
        raise AssertionError(last_step)

    def close(self, *, failed: bool) -> None:
        raise AssertionError(failed)


def test_a_tracker_that_fails_ends_no_run_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker: RunTracker = LostTracker()
    monkeypatch.setattr(
        "topd_ray.records.metrics.open_trackers", lambda *_, **__: iter([tracker])
    )
    config, folder = a_run(tmp_path)
    lost: list[TrackerError] = []
    with MetricsLog(config, folder, last_step=0, on_lost=lost.append) as log:
        for step in (1, 2, 3):
            log.log({"step": step})
        log.go_back(2)
        assert not log.has_trackers
    assert [str(error) for error in lost] == ["lost: no answer"]
    assert getattr(tracker, "steps", None) == [1, 2]
    (event,) = map(json.loads, folder.events.read_text().splitlines())
    assert (event["event"], event["tracker"]) == ("tracker_lost", "lost")
    assert len(folder.metrics.read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_without_its_package_is_missed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config, _ = a_run(tmp_path, name)
    refuse_missing_trackers(config)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"the package {name} is not installed; `pip"):
        refuse_missing_trackers(config)


def test_an_mlflow_server_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config, folder = a_run(tmp_path, "mlflow")
    with pytest.raises(TrackerError, match=r"mlflow: .*127\.0\.0\.1"):
        MetricsLog(config, folder, last_step=0)


def test_no_tracker_is_loaded_unless_it_is_asked_for(tmp_path: Path) -> None:
    config, folder = a_run(tmp_path)
    with MetricsLog(config, folder, last_step=0) as log:
        log.log({"step": 1})
    assert not folder.tensorboard.exists()
    names = {path.name for path in folder.path.iterdir()}
    assert names == {"config.yaml", "events.jsonl", "metrics.jsonl"}
