"""Pictures of reports for the documents: `make pictures`.

    .venv/bin/python docs/pictures.py runs/demo/report.html runs/toy-topd/report.html

Playwright drives Debian's Chromium. Of the takeover run it shows the overview and the
first wrong rollout that was taken over; of the TOPD run the real divergence with a plan
and the largest D_OT among those of at least `LEAST_LOSS` nats.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1280, 860
READER_HEIGHT = 980
TAKEOVER_HEIGHT = 560
LEAST_LOSS = 5
SHORTEST = 12
"""Tokens of the student's continuation."""
LARGEST_BYTES = 300_000


def main() -> None:
    """Write docs/images/report-*.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("takeover", type=Path)
    parser.add_argument("topd", type=Path)
    arguments = parser.parse_args()
    takeover, topd = (
        path.resolve().as_uri() for path in (arguments.takeover, arguments.topd)
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no chromium on the PATH: `make browser` installs Debian's")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(f"{takeover}#overview")
        page.wait_for_selector("main[data-view=overview]")
        _save(page, "report-overview")
        page.goto(f"{takeover}#reader?taken=1&right=0&up=1")
        page.wait_for_selector("main[data-view=reader] .takeover")
        page.set_viewport_size({"width": WIDTH, "height": TAKEOVER_HEIGHT})
        _save(page, "report-takeover")
        page.goto(f"{topd}#reader?verdict=2&order=d_ot&l_min={LEAST_LOSS}")
        page.wait_for_selector("main[data-view=reader] .plan-column")
        _open_a_long_one(page)
        page.set_viewport_size({"width": WIDTH, "height": READER_HEIGHT})
        page.wait_for_timeout(300)
        _save(page, "report-plan")
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
