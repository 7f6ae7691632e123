"""The page of `topd train --watch` follows a real run from its start to its end."""

import re
import subprocess
from pathlib import Path

from playwright.sync_api import Page

from tests.runs import BIN, INLINE, ROOT, Setting

STEPS = 12
"""Enough that the page opens before the run ends."""
DEADLINE_MS = 120_000


def address_of(process: subprocess.Popen[str]) -> str:
    """Return the address that the command prints."""
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"watch .* at (http://127\.0\.0\.1:\d+/)", line)
        if found:
            return found[1]
    raise AssertionError("no address was printed")


def test_a_page_follows_a_run_to_its_end(
    setting: Setting, tab: Page, tmp_path: Path
) -> None:
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    overrides = [*INLINE, "run.name=live", f"run.steps={STEPS}"]
    command = [BIN / "topd", "train", setting.file, *overrides, "--watch"]
    with (
        (tmp_path / "stderr").open("w") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        tab.goto(address_of(process))
        tab.wait_for_selector("main[data-view=overview]", timeout=DEADLINE_MS)
        begun = tab.inner_text(".state")
        tab.wait_for_selector("body[data-state=finished]", timeout=DEADLINE_MS)
        output, _ = process.communicate(timeout=DEADLINE_MS / 1000)
    assert process.returncode == 0, (tmp_path / "stderr").read_text()
    assert begun == "running"
    assert tab.inner_text(".progress-text") == f"step {STEPS} of {STEPS}"
    assert errors == []
    last = output.strip().splitlines()[-1]
    report = setting.run("live").path / "report.html"
    assert last.endswith(f"report {report}")
    assert report.is_file()
