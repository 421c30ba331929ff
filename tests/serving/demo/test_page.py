"""The page of `oneshot demo` in a real browser: what a person does there with a mouse."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from serving.demo.pictures import generated_pictures
from serving.demo.recogniser import Recogniser
from tests.browser import OpenPage, OpensPage
from tests.serving.demo.pixel_model import OLD, PixelClient, glyph

pytest.importorskip("gradio", reason="the extra demo is not installed: no page to try")

pytestmark = pytest.mark.timeout(600)
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served in this process."""
    from serving.demo.page import demo_page, serving

    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRADIO_TEMP_DIR", str(folder / "uploaded"))
        recogniser = Recogniser(PixelClient(), folder, generated_pictures(), models=folder)  # type: ignore[arg-type]
        with serving(demo_page(recogniser, about=""), port=0) as address:
            yield address
        recogniser.close()


@pytest.fixture
def demo(open_page: OpensPage, url: str, request: pytest.FixtureRequest) -> Iterator[OpenPage]:
    """The page, opened; a screenshot is kept of how each test leaves it."""
    opened = open_page(url, **getattr(request, "param", {}))
    opened.page.set_default_timeout(PATIENCE_MS)
    opened.page.get_by_label("Enrol this picture as").wait_for()
    yield opened
    opened.screenshot(f"demo-{request.node.name}")
    assert [asked for asked in opened.requests if not asked.startswith((url, f"blob:{url}"))] == []
    assert opened.console_errors == []
    assert not opened.scrolls_sideways


@pytest.fixture
def page(demo: OpenPage) -> Page:
    return demo.page


def verdict(page: Page, text: str) -> None:
    """Waits until the page says so."""
    expect(page.locator("#answer h2")).to_have_text(text, timeout=PATIENCE_MS)


def draw(page: Page) -> None:
    """A triangle with a tail, by mouse."""
    page.locator("button.highlight[aria-label=Brush]:visible").first.wait_for()
    canvas = page.locator("canvas:visible").first
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 50, y - 50)
    page.mouse.down()
    for right, down in ((50, -50), (0, 50), (-50, -50), (0, 0)):
        page.mouse.move(x + right, y + down, steps=5)
    page.mouse.up()


def give(page: Page, image: bytes) -> None:
    page.get_by_role("tab", name="File or camera").first.click()
    file = {"name": "given.png", "mimeType": "image/png", "buffer": image}
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Click to Upload").locator("visible=true").first.click()
    chooser.value.set_files(file)


def test_a_drawing_is_enrolled_and_found_again(page: Page) -> None:
    draw(page)
    verdict(page, "Unknown")
    name = page.get_by_label("Enrol this picture as")
    name.fill("<b>triangle</b>")
    name.press("Enter")
    verdict(page, "<b>triangle</b>")
    page.get_by_label("Clear canvas").click()
    expect(page.locator("#answer")).to_contain_text("Draw something", timeout=PATIENCE_MS)
    draw(page)
    verdict(page, "<b>triangle</b>")


def test_an_upload_is_identified(page: Page) -> None:
    name, images = list(generated_pictures().enrolled.items())[3]
    give(page, images[0])
    verdict(page, name)
    answers = page.locator("#answer li")
    assert answers.count() == 5
    assert name in answers.first.inner_text()


def test_a_stranger_is_unknown_also_to_the_other_version(page: Page) -> None:
    give(page, glyph(0))
    verdict(page, "Unknown")
    page.get_by_label("Version of the model").click()
    page.get_by_role("option", name=OLD).click()
    verdict(page, "Unknown")


def test_two_pictures_are_compared(page: Page) -> None:
    page.get_by_role("tab", name="Compare two").click()
    for side in (0, 1):
        page.locator("[role=tab]:visible", has_text="File or camera").nth(side).click()
        page.locator(".gallery-item:visible").nth(12 * side + side).click()
    expect(page.locator("#alike")).to_contain_text("% alike", timeout=PATIENCE_MS)


@pytest.mark.parametrize("demo", [{"scheme": "dark", "width": 390}], indirect=True, ids=["phone"])
def test_who_is_enrolled_can_be_forgotten_on_a_phone_in_the_dark(page: Page) -> None:
    name, images = list(generated_pictures().enrolled.items())[5]
    give(page, images[0])
    verdict(page, name)
    page.get_by_role("tab", name="Enrolled").click()
    page.get_by_label("Name", exact=True).click()
    page.get_by_role("option", name=name).click()
    page.get_by_role("button", name="Forget").click()
    expect(page.locator(".caption-label", has_text=name)).to_have_count(0, timeout=PATIENCE_MS)
    page.get_by_role("tab", name="Who is it?").click()
    verdict(page, "Unknown")
