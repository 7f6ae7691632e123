"""The live page follows a real run from its start to its end."""

import subprocess
import time
from pathlib import Path

from playwright.sync_api import Page

from tests.browser.serving import served
from tests.runs import BIN, INLINE, ROOT, Setting

STEPS = 6
DEADLINE_S = 120.0


def wait_for(file: Path) -> None:
    """Wait until a run has written a file."""
    until_s = time.monotonic() + DEADLINE_S
    while not file.is_file():
        assert time.monotonic() < until_s, f"no {file} after {DEADLINE_S:g} s"
        time.sleep(0.05)


def test_a_page_follows_a_run_to_its_end(
    setting: Setting, tab: Page, tmp_path: Path
) -> None:
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.set_default_timeout(DEADLINE_S * 1000)
    overrides = [*INLINE, "run.name=live", f"run.steps={STEPS}"]
    command = [BIN / "topd", "train", setting.file, *overrides]
    folder = setting.run("live").path
    log = tmp_path / "output"
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output) as process,
    ):
        wait_for(folder / "config.yaml")
        with served(folder) as address:
            tab.goto(address)
            tab.wait_for_selector("main[data-view=overview]")
            assert tab.inner_text(".state") == "running"
            assert "No step is finished yet" in tab.inner_text(".missing")
            tab.wait_for_selector("body[data-state=finished]")
            tab.wait_for_selector("figure.chart")
            assert tab.inner_text(".progress-text") == f"step {STEPS} of {STEPS}"
            tab.get_by_role("link", name="Rollouts").click()
            tab.wait_for_selector(".plan .link")
        process.wait(DEADLINE_S)
    assert process.returncode == 0, log.read_text()
    assert errors == []
    last = log.read_text().strip().splitlines()[-1]
    assert last.endswith(f"report {folder / 'report.html'}")
