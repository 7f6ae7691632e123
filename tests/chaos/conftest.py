"""What each test says it does to a run, by marker or property: TOPD_CHAOS_RECORD names
a file.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

_ROWS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = (yield).get_result()
    if (
        report.when == "call"
        or report.skipped
        or (report.when == "setup" and report.failed)
    ):
        row = {"test": item.name, "outcome": report.outcome}
        if mark := item.get_closest_marker("fault"):
            row |= {"fault": mark.args[0], **mark.kwargs}
        item.config.stash[_ROWS].append(row | dict(report.user_properties))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if target := os.environ.get("TOPD_CHAOS_RECORD"):
        rows = session.config.stash[_ROWS]
        Path(target).write_text(json.dumps(rows, indent=2), encoding="utf-8")
