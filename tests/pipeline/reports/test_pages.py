"""Report and index in a real browser: nothing fails, nothing is fetched, all fits a phone."""

from pathlib import Path
from typing import Literal

import pytest

from pipeline.reports.index import report_on
from tests.browser import OpensPage, browser, open_page
from tests.pipeline.reports.reported_run import reported_runs

__all__ = ["browser", "open_page"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """A report, and the index of all runs."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorded, _, second = reported_runs(tmp_path_factory.mktemp("pages"), monkeypatch)
        return report_on(recorded.workspace, second, recorded.history)


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_render_without_an_error_or_a_request_and_fit_the_window(
    pages: tuple[Path, ...],
    open_page: OpensPage,
    scheme: Literal["light", "dark"],
    width: int,
) -> None:
    for file in pages:
        opened = open_page(file.as_uri(), scheme=scheme, width=width)
        picture = opened.screenshot(f"{file.stem}_{scheme}_{width}")
        assert opened.console_errors == []
        assert opened.requests == []
        assert not opened.scrolls_sideways, picture
        assert opened.page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
        # Text and lines of drawings have the colour of the page's text.
        ink, drawn = (
            opened.page.evaluate(f"getComputedStyle(document.querySelector('{one}')).{colour}")
            for one, colour in (("body", "color"), ("svg text", "fill"))
        )
        assert ink == drawn
        background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness = sum(int(part) for part in background[4:-1].split(","))
        assert (lightness > 384) == (scheme == "light")
