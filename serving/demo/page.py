"""The page of `oneshot demo`, in Gradio: it shows what a `Recogniser` answers."""

import base64
import html
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.client import InvalidImage
from serving.demo.recogniser import Recogniser
from serving.errors import ServingError
from serving.gallery.records import Identification

RATES: Final = [("1 %", 0.01), ("5 %", 0.05), ("20 %", 0.2)]
EXAMPLES: Final = 6
HOST: Final = "127.0.0.1"
CANVAS: Final = (400, 400)
SEEN_HEIGHT: Final = 140
_HINT: Final = "Draw something, or give a file, a photo or one of the examples."
_BOTH: Final = "Give two pictures."
_CSS: Final = """
#answer h2 { overflow-wrap: anywhere; }
#answer ol { list-style: none; padding: 0; }
#answer li { display: flex; align-items: center; gap: .75rem; padding: .25rem 0; }
#answer img { width: 48px; height: 48px; object-fit: contain; background: #fff; }
#answer span { flex: 1; overflow-wrap: anywhere; }
#answer b { width: 4.5em; text-align: right; }
"""


def demo_page(recogniser: Recogniser, *, about: str) -> gr.Blocks:
    """The page, to be served by `serving`. `about` says what is enrolled to begin with."""

    def identify(image: bytes | None, version: str, rate: float) -> tuple[str, Any]:
        if image is None:
            return _HINT, _enlarged(None)
        try:
            found = recogniser.identify(image, version=version, rate=rate)
            pixels = recogniser.seen(image, version=version)
        except ServingError as error:
            return html.escape(error.message), _enlarged(None)
        return _answer(found, recogniser.known), _enlarged(pixels)

    def enroll(name: str, image: bytes | None, version: str) -> str:
        if image is None:
            raise gr.Error(_HINT, print_exception=False)
        with _told():
            recogniser.enroll(name.strip(), image, version=version)
        return ""

    def enrolled() -> tuple[Any, Any]:
        known = list(recogniser.known.items())[::-1]
        shown = [(_opened(images[0]), name) for name, images in known]
        return shown, gr.Dropdown(choices=[name for name, _ in known], value=None)

    def compare(one: bytes | None, other: bytes | None, version: str) -> str:
        if one is None or other is None:
            return _BOTH
        try:
            return f"<h2>{_percent(recogniser.compare(one, other, version=version))} alike</h2>"
        except ServingError as error:
            return html.escape(error.message)

    def versions() -> Any:
        with _told():
            ready = recogniser.versions()
        return gr.Dropdown(choices=ready, value=ready[0] if ready else None)

    with gr.Blocks(title="One-shot recogniser", analytics_enabled=False) as page:
        gr.Markdown(f"# One-shot recogniser\nOne picture of each is enough. {about}")
        with gr.Tab("Who is it?"), gr.Row():
            asked = _picker(recogniser, "Picture")
            with gr.Column():
                answer = gr.HTML(_HINT, elem_id="answer")
                name = gr.Textbox(
                    label="Enrol this picture as", placeholder="name", submit_btn="Enrol"
                )
                seen = gr.Image(
                    label="What the network sees",
                    interactive=False,
                    visible=False,
                    height=SEEN_HEIGHT + 40,
                    format="png",
                    buttons=[],
                )
        with gr.Tab("Compare two"):
            with gr.Row():
                one, other = (_picker(recogniser, label) for label in ("One", "The other"))
            alike = gr.HTML(_BOTH, elem_id="alike")
        with gr.Tab("Enrolled"):
            people = gr.Gallery(
                label="The first picture of each, the newest first",
                columns=6,
                allow_preview=False,
                format="png",
                buttons=[],
            )
            with gr.Row():
                leaving = gr.Dropdown(label="Name", scale=3)
                forget = gr.Button("Forget", scale=1)
        with gr.Row():
            version = gr.Dropdown(recogniser.versions(), label="Version of the model")
            rate = gr.Dropdown(RATES, value=RATES[1][1], label="Chance that a stranger gets a name")

        asks: dict[str, Any] = {"fn": identify, "inputs": [asked, version, rate]}
        asks |= {"outputs": [answer, seen], "show_progress": "hidden"}
        page.load(versions, outputs=version).then(enrolled, outputs=[people, leaving])
        # What comes while an answer is under way must not be lost.
        latest = {"trigger_mode": "always_last"}
        gr.on([asked.change, version.change, rate.change], **asks, **latest)
        for changed in (
            name.submit(enroll, [name, asked, version], name),
            forget.click(recogniser.forget, leaving),
        ):
            changed.success(**asks).then(enrolled, outputs=[people, leaving])
        gr.on(
            [one.change, other.change, version.change],
            compare,
            [one, other, version],
            alike,
            show_progress="hidden",
            **latest,
        )
    return page


def _picker(recogniser: Recogniser, label: str) -> gr.State:
    """Draws the ways to give a picture; gives the place of the last one given, bytes or None."""
    begun = recogniser.pictures
    enrolled = [images[1] for images in begun.enrolled.values() if len(images) > 1]
    strangers = [images[0] for images in begun.outsiders.values()]

    def taken(given: Any) -> bytes | None:
        """The picture, encoded; None for an empty canvas."""
        image = given["composite"] if isinstance(given, dict) else given
        try:
            return None if image is None else recogniser.encode(image)
        except InvalidImage as error:
            if isinstance(given, dict):
                return None
            raise gr.Error(html.escape(error.message), print_exception=False) from error

    picture = gr.State()
    with gr.Column():
        with gr.Tab("Draw"):
            drawn = gr.Sketchpad(
                Image.new("RGB", CANVAS, "white"),
                label=label,
                type="pil",
                format="png",
                canvas_size=CANVAS,
                brush=gr.Brush(default_size=6, colors=["#000000"], color_mode="fixed"),
                layers=False,
                transforms=(),
                buttons=[],
            )
        with gr.Tab("File or camera"):
            given = gr.Image(label=label, type="filepath", format="png", buttons=[], height=360)
            if enrolled or strangers:
                gr.Examples(
                    [_opened(image) for image in (*enrolled[:EXAMPLES], *strangers[:EXAMPLES])],
                    given,
                    label="Or one of these: those enrolled, drawn by others; then strangers",
                    examples_per_page=2 * EXAMPLES,
                )
        # A stroke is an input; its change comes late, or not at all.
        gr.on(
            [drawn.input, drawn.clear],
            taken,
            drawn,
            picture,
            trigger_mode="always_last",
            show_progress="hidden",
        )
        # Its own clearing takes the paper away, and the brush out of the hand.
        drawn.clear(
            lambda: Image.new("RGB", CANVAS, "white"), outputs=drawn, show_progress="hidden"
        )
        given.change(taken, given, picture, show_progress="hidden")
    return picture


@contextmanager
def serving(page: gr.Blocks, *, port: int) -> Iterator[str]:
    """Serves the page to this machine alone; gives its URL.

    Args:
      page: of `demo_page`.
      port: 0: any free one.

    Raises:
      OSError: the port is taken.
    """
    # Gradio asks itself whether it is there, which no proxy should be asked.
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join(filter(None, (excepted, HOST)))
    try:
        _, url, _ = page.launch(
            server_name=HOST,
            server_port=port or None,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            css=_CSS,
        )
    except OSError as error:
        raise OSError(f"port {port} is taken: --port names another, 0 takes any") from error
    try:
        yield url
    finally:
        page.close(verbose=False)


@contextmanager
def _told() -> Iterator[None]:
    """Shows why there is no answer."""
    try:
        yield
    except ServingError as error:
        raise gr.Error(html.escape(error.message), print_exception=False) from error


def _enlarged(pixels: NDArray[np.uint8] | None) -> gr.Image:
    if pixels is None:
        return gr.Image(visible=False)
    image = Image.fromarray(pixels)
    factor = -(-SEEN_HEIGHT // image.height)
    return gr.Image(image.resize((factor * image.width, factor * image.height), 0), visible=True)


def _opened(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image)).convert("RGB")


def _answer(found: Identification, known: dict[str, list[bytes]]) -> str:
    """The verdict, and who is most alike, best first."""
    needed = _percent(1 / (1 + math.exp(-found.threshold)))
    rows = []
    for one in found.candidates:
        image = base64.b64encode(known[one.name][0]).decode() if one.name in known else ""
        rows.append(
            f'<li><img src="data:;base64,{image}" alt=""><span>{html.escape(one.name)}</span>'
            f'<meter value="{one.score}"></meter><b>{_percent(one.score)}</b></li>'
        )
    return (
        f"<h2>{html.escape(found.name or 'Unknown')}</h2>"
        f"<p>{needed} alike or more is taken for the same.</p><ol>{''.join(rows)}</ol>"
    )


def _percent(share: float) -> str:
    """A share in percent, with more digits where it is near 0 or 1."""
    rest = min(share, 1 - share)
    digits = 0 if rest >= 0.1 or rest < 0.00005 else 1 if rest >= 0.01 else 2
    return f"{100 * share:.{digits}f} %"
