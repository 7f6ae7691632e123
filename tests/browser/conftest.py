"""One browser for all tests of a session: Debian's Chromium, driven by playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.pages import Opened
from tests.browser.runs import hostile_run
from topd_ray.page.report import write_report

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless browser; the tests are skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: `make browser` installs Debian's")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def report(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run whose models wrote hostile things, against another."""
    run = hostile_run(synthetic, tmp_path_factory.mktemp("hostile") / "run")
    return write_report(run, against=synthetic)


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Opened]:
    """A fresh page at the report; it must make no request and write no error."""
    page = browser.new_page(viewport={"width": 1360, "height": 900})
    watched = Opened(page, report.as_uri())
    yield watched
    page.close()
    assert watched.errors == []
    assert set(watched.requests) == {report.as_uri()}


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A fresh page at nothing."""
    page = browser.new_page()
    yield page
    page.close()
