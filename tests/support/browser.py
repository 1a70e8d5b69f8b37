"""A real Chromium that looks at the dashboard."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
SCREENSHOTS = os.environ.get("TUTTI_SCREENSHOTS")
"""A folder into which the tests put a picture of every page, for people to look at."""

PATIENCE_MS = 60_000


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    if CHROMIUM is None:
        missing("Chromium (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *arguments]
        )
        try:
            yield browser
        finally:
            browser.close()


def missing(what: str) -> None:
    """Skips the test, or fails it where every service is required."""
    if os.environ.get("TUTTI_REQUIRE_SERVICES"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"needs {what}")


class Visitor:
    """Somebody at a browser of their own. `said` are the warnings and errors on the console."""

    def __init__(
        self, browser: Browser, url: str, *, width: int = 1280, height: int = 900, scheme: str = "light"
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            accept_downloads=True,
            base_url=url,
        )
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.said.append(message.text)

    def goto(self, path: str) -> Page:
        self.page.goto(path)
        return self.page

    def violations(self) -> list[str]:
        """What axe finds wrong with the page, in a line each."""
        if not AXE.exists():
            missing("axe-core (`npm ci` in web/)")
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate(
            "axe.run(document, {resultTypes: ['violations']}).then(r => JSON.stringify(r.violations))"
        )
        return [
            f"{violation['id']}: {violation['help']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
            for violation in json.loads(found)
            for node in violation["nodes"]
        ]

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def picture(self, name: str, *, whole: bool = True) -> None:
        """Take one, of the whole page or of what is in the window, if anybody wants pictures."""
        if SCREENSHOTS:
            if not whole:
                self.page.evaluate("scrollTo(0, 0)")
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=whole)

    def close(self) -> None:
        self.context.close()
