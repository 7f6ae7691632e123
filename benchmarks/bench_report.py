"""Claims `report_seconds` and `report_filter`: a run's page, written and filtered.

A synthetic run of 200 steps and 20,000 windows. Seconds are CPU time of the process
that writes; a filter is timed by the page itself, from a key to the list that is drawn,
in Debian's headless Chromium.
"""

import shutil
import tempfile
import time
from pathlib import Path

import torch
from measure import Claim, save
from playwright.sync_api import Page, sync_playwright
from synthetic_run import Size, SyntheticRun
from transformers import AutoTokenizer

from topd_ray.page.report import write_report

SIZE = Size(steps=200, rollouts=16, candidates=60, plans=64)
NUM_WINDOWS = 20_000
WRITE_GOAL_S = 20.0
FILTER_GOAL_MS = 200.0
RUNS = 3
SEARCHES = ("therefore we have 9", "9 + 4", "boxed", "so")
SETTING = (
    "200 steps, 20,000 windows of 50 tokens, 12,800 of them with a plan, 3,200 rollouts"
)


def written(path: Path) -> tuple[list[float], int]:
    """Return CPU seconds of several reports, and the bytes of one."""
    seconds = []
    for _ in range(RUNS):
        began_s = time.process_time()
        report = write_report(path)
        seconds.append(time.process_time() - began_s)
    return seconds, report.stat().st_size


def filtered(report: Path) -> tuple[float, list[float]]:
    """Return seconds until the list can be filtered, and milliseconds of filters."""
    chromium = shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        began_s = time.perf_counter()
        page.goto(f"{report.as_uri()}#reader?plan=any")
        page.wait_for_selector("main[data-view=reader]")
        opened_s = time.perf_counter() - began_s
        assert page.inner_text(".reader-side .status") == f"{NUM_WINDOWS:,} windows"
        times = list(_filters(page))
        browser.close()
    return opened_s, times


def _filters(page: Page) -> list[float]:
    times = []
    for text in SEARCHES:
        page.fill("[name=text]", text)
        times.append(_milliseconds(page))
    page.fill("[name=text]", "")
    for name, value in (("l_min", "1"), ("d_min", "0.05")):
        page.fill(f"[name={name}]", value)
        times.append(_milliseconds(page))
    for name, value in (("verdict", "2"), ("right", "0"), ("order", "d_ot")):
        page.select_option(f"[name={name}]", value)
        times.append(_milliseconds(page))
    return times


def _milliseconds(page: Page) -> float:
    return float(page.get_attribute(".reader", "data-filter-ms") or "nan")


def main() -> None:
    """Measure both claims."""
    # What a process of `topd` loads once is no part of the page.
    assert AutoTokenizer is not None
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = SyntheticRun(Path(folder) / "run", SIZE).write().path
        seconds, num_bytes = written(path)
        opened_s, times = filtered(path / "report.html")
    save(
        Claim(
            name="report_seconds",
            claim="report of a run, CPU seconds on one core",
            against="200 steps, 20,000 windows",
            goal="<= 20 s, < 50 MB",
            figure=f"{min(seconds):.1f} to {max(seconds):.1f} s of {RUNS};"
            f" {num_bytes / 1e6:.1f} MB",
            met=max(seconds) <= WRITE_GOAL_S and num_bytes < 50e6,
            setting=SETTING,
        )
    )
    save(
        Claim(
            name="report_filter",
            claim="a filter of the page, headless Chromium",
            against="20,000 windows",
            goal="<= 200 ms",
            figure=f"{min(times):.0f} to {max(times):.0f} ms of {len(times)} filters",
            met=max(times) <= FILTER_GOAL_MS,
            setting=f"{SETTING}; the page could be filtered after {opened_s:.1f} s",
        )
    )


if __name__ == "__main__":
    main()
