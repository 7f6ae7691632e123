"""A finished run leaves its page, and stays finished where it cannot."""

import json
import time
from pathlib import Path

import pytest

from topd_ray.config import parse_config
from topd_ray.driver.last_report import leave_report
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.run_log import RunLog


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    values = {
        "run": {"root": str(tmp_path), "name": "one"},
        "prompts": {"path": "p"},
        "teacher": {"model": "t"},
        "learner": {"model": "s"},
    }
    return RunFolder.create(parse_config(values, source="test"))


def leave(folder: RunFolder) -> None:
    _, config = RunFolder.existing(folder.path)
    now_s = time.monotonic()
    with RunLog(config, folder, last_step=0, total_steps=1, started_s=now_s) as log:
        leave_report(folder, log)


def test_the_last_line_names_the_page(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(folder)
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert line.endswith(f"report {folder.path / 'report.html'}")
    assert (folder.path / "report.html").is_file()


def test_a_page_that_cannot_be_written_is_told_and_fails_nothing(
    folder: RunFolder,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (folder.path / "report.html.partial").mkdir()  # in the way of the file
    leave(folder)
    assert "no report: [Errno 21] Is a directory" in capsys.readouterr().out
    assert "no report was written" in caplog.text
    (event,) = map(json.loads, folder.events.read_text().splitlines())
    assert event["event"] == "report_failed"
    assert "Is a directory" in event["reason"]
