"""A real browser for tests of pages: Chromium, driven by Playwright.

    from tests.browser import browser, open_page  # noqa: F401

Screenshots are kept in the folder that ONESHOT_SCREENSHOTS names, else beside the test's files.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class OpenPage:
    """A page, and what it did."""

    page: Page
    screenshots: Path
    console_errors: list[str] = field(default_factory=list)
    """Errors that the page wrote on the console or raised."""
    requests: list[str] = field(default_factory=list)
    """Addresses that it asked for, without its own and those that hold their content (`data:`)."""

    @property
    def scrolls_sideways(self) -> bool:
        """Whether it is wider than the window."""
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        return bool(self.page.evaluate(wide))

    def screenshot(self, name: str) -> Path:
        """Keeps a picture of the whole page."""
        path = self.screenshots / f"{name}.png"
        self.page.screenshot(path=path, full_page=True)
        return path


OpensPage = Callable[..., OpenPage]
"""`open_page(address, scheme="light", width=1200)`."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium: Playwright's own, or the one that is installed; without one the test is skipped."""
    installed = next(filter(None, map(shutil.which, _NAMES)), None)
    with sync_playwright() as playwright:
        if installed is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.skip("no Chromium here: install Debian's package chromium to have pages tested")
        # A sandbox is not to be had in containers; what is opened here is our own.
        opened = playwright.chromium.launch(executable_path=installed, chromium_sandbox=False)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[OpensPage]:
    """Opens addresses in windows of their own, which are closed with the test."""
    kept = Path(os.environ.get("ONESHOT_SCREENSHOTS", tmp_path / "screenshots"))
    kept.mkdir(parents=True, exist_ok=True)
    contexts = []

    def opens(
        address: str, *, scheme: Literal["light", "dark"] = "light", width: int = 1200
    ) -> OpenPage:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        # A machine that is busy takes its time.
        context.set_default_timeout(120_000)
        opened = OpenPage(context.new_page(), kept)

        def asked(url: str) -> None:
            if url != address and not url.startswith("data:"):
                opened.requests.append(url)

        opened.page.on("request", lambda request: asked(request.url))
        opened.page.on("pageerror", lambda error: opened.console_errors.append(str(error)))
        opened.page.on(
            "console",
            lambda message: (
                opened.console_errors.append(message.text) if message.type == "error" else None
            ),
        )
        opened.page.goto(address, wait_until="load")
        return opened

    yield opens
    for context in contexts:
        try:
            context.close()
        except Error:
            # The browser has gone; its windows with it.
            continue
