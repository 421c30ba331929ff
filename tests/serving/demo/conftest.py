"""The browser, for tests of the page."""

from tests.browser import browser, open_page

__all__ = ["browser", "open_page"]
