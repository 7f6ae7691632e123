"""Pictures of a report for the documents: `make pictures`.

    .venv/bin/python docs/pictures.py runs/demo/report.html

Playwright drives Debian's Chromium. The window that is shown is the real divergence
with a plan and the largest D_OT among those of at least `LEAST_LOSS` nats.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1280, 860
READER_HEIGHT = 980
LEAST_LOSS = 5
SHORTEST = 12
"""Tokens of the student's continuation."""
LARGEST_BYTES = 300_000


def main() -> None:
    """Write docs/images/report-*.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    report = parser.parse_args().report.resolve()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no chromium on the PATH: `make browser` installs Debian's")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(f"{report.as_uri()}#overview")
        page.wait_for_selector("main[data-view=overview]")
        _save(page, "report-overview")
        page.goto(f"{report.as_uri()}#reader?verdict=2&order=d_ot&l_min={LEAST_LOSS}")
        page.wait_for_selector("main[data-view=reader]")
        _open_a_long_one(page)
        page.set_viewport_size({"width": WIDTH, "height": READER_HEIGHT})
        page.wait_for_timeout(300)
        _save(page, "report-reader")
        browser.close()


def _open_a_long_one(page: Page) -> None:
    """Walk down the list to a window whose plan has enough rows."""
    page.locator("[role=listbox]").focus()
    for _ in range(40):
        page.wait_for_timeout(100)
        if page.locator(".plan-column.student button").count() >= SHORTEST:
            break
        page.keyboard.press("ArrowDown")
    page.locator(".plan-column.student button").first.hover()
    page.evaluate("window.scrollTo(0, 0)")


def _save(page: Page, name: str) -> None:
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    size = path.stat().st_size
    print(f"{path}: {size / 1e3:.0f} kB")
    if size > LARGEST_BYTES:
        sys.exit(f"{path}: larger than {LARGEST_BYTES / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
