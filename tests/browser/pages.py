"""A page that is watched: its errors, its requests, and axe's complaints."""

from functools import cache
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

AXE = Path(__file__).parent / "axe" / "axe.min.js"
AXE_VERSION = "4.14.1"
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
"""Of the npm package axe-core, unchanged."""
DEADLINE_MS = 20_000


class Opened:
    """A page of the report and what it has done since it was opened."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._address = address
        page.set_default_timeout(DEADLINE_MS)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text))
        page.on("dialog", lambda dialog: self.errors.append(dialog.message))
        page.on("request", lambda request: self._note(request.url))

    def _note(self, address: str) -> None:
        if not address.startswith("data:"):  # the icon
            self.requests.append(address.partition("#")[0])

    def go(self, view: str = "") -> Page:
        """Open a view, and wait until it is drawn."""
        self.page.goto(f"{self._address}#{view}")
        self.page.wait_for_selector("main[data-view]")
        return self.page


def complaints(page: Page) -> list[str]:
    """Return what axe finds: WCAG 2 A and AA, contrast and labels among it."""
    page.evaluate(_axe())  # by the debugger, which no content policy stops
    found: dict[str, Any] = page.evaluate(
        "() => axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa',"
        " 'best-practice'], resultTypes: ['violations']})"
    )
    return [
        f"{rule['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
        for rule in found["violations"]
        for node in rule["nodes"][:3]
    ]


@cache
def _axe() -> str:
    return AXE.read_text(encoding="utf-8")
