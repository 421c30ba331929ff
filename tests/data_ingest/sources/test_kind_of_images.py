"""Images made here, of each kind, as folders of them look."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from data_ingest.sources.glyphs import draw_alphabet, encode_png
from data_ingest.sources.kind_of_images import kind_of
from data_ingest.sources.kinds import Kind
from data_ingest.sources.layout import list_images

RNG = np.random.default_rng(5)


def scribble(size: tuple[int, int], *, paper: object = "white", ink: object = 30) -> Image.Image:
    page = Image.new("RGB", size, paper)
    width, height = size
    places = RNG.uniform(0.15, 0.85, (9, 2)) * (width, height)
    ImageDraw.Draw(page).line([tuple(place) for place in places], fill=ink, width=height // 25)
    return page


def scan(page: Image.Image) -> Image.Image:
    """The grain of a scanner, and its JPEG."""
    noise = RNG.normal(0, 4, (*page.size[::-1], 3))
    grainy = np.clip(np.asarray(page) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(grainy).filter(ImageFilter.GaussianBlur(0.6))


def signature() -> Image.Image:
    pen = (30, 30, 40) if RNG.random() < 0.5 else (40, 60, 150)
    size = (int(RNG.integers(300, 900)), int(RNG.integers(120, 200)))
    return scan(scribble(size, paper=(236, 232, 226), ink=pen))


def drawing() -> Image.Image:
    return scan(scribble((150, 160)))


def chalk() -> Image.Image:
    return scan(scribble((150, 150), paper=(20, 40, 30), ink=(230, 230, 230)))


def photo() -> Image.Image:
    patches = Image.fromarray(RNG.integers(0, 256, (5, 4, 3), np.uint8))
    return patches.resize((200, 250), Image.Resampling.BICUBIC)


def fog() -> Image.Image:
    """Of little contrast."""
    return photo().point(lambda level: 120 + level // 10)


def portrait() -> Image.Image:
    """Gray, before an even background."""
    page = Image.new("L", (92, 112), int(RNG.integers(60, 200)))
    face = Image.fromarray(RNG.integers(40, 220, (6, 5), np.uint8)).resize((70, 100))
    page.paste(face, (11, 12))
    return page


def disc() -> Image.Image:
    """One of four colours tells it from others."""
    page = Image.new("RGB", (64, 64), "white")
    colour = [(200, 40, 40), (40, 160, 40), (40, 40, 200), (200, 200, 30)][RNG.integers(4)]
    x, y, radius = RNG.integers(20, 44, 3) * (1, 1, 0.4)
    ImageDraw.Draw(page).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return page


def make(folder: Path, draw: Callable[[], Image.Image], name: str = "png") -> Path:
    for number in range(20):
        place = folder / f"class{number % 4}"
        place.mkdir(parents=True, exist_ok=True)
        draw().save(place / f"{number}.{name}")
    return folder


@pytest.mark.parametrize(
    ("draw", "name", "kind", "reason"),
    [
        (signature, "jpg", "signature", "ink on plain paper in 20 of 20 images looked at, "),
        (drawing, "jpg", "drawing", "ink on plain paper in 20 of 20 images looked at"),
        (chalk, "png", "drawing", "ink on plain paper in 20 of 20"),
        (photo, "jpg", "photo", "mid-tones up to the border in 20 of 20 images looked at"),
        (fog, "png", "photo", "mid-tones up to the border in 20 of 20"),
        (portrait, "png", "photo", "mid-tones up to the border in 20 of 20"),
        (disc, "png", "photo", "the colours on plain paper differ between 20 of 20"),
    ],
)
def test_the_kind_is_told_by_how_images_look(
    tmp_path: Path, draw: Callable[[], Image.Image], name: str, kind: Kind, reason: str
) -> None:
    found = kind_of(list_images(make(tmp_path, draw, name)))
    assert found.kind == kind
    assert found.reason.startswith(reason)
    assert str(found).endswith("; dataset.kind overrules it)")


def test_generated_glyphs_are_drawings(tmp_path: Path) -> None:
    for number, drawers in enumerate(draw_alphabet(0, characters=3, writers=4, seed=1)):
        for drawer, image in enumerate(drawers):
            path = tmp_path / f"character{number:02}" / f"{drawer}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode_png(image))
    assert kind_of(list_images(tmp_path)).kind == "drawing"


def test_images_that_cannot_be_read_do_not_count(tmp_path: Path) -> None:
    folder = make(tmp_path, photo)
    for number in range(10):
        (folder / "class0" / f"x{number}.png").write_bytes(b"no image")
    assert "20 of 20 images" in kind_of(list_images(folder)).reason
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"no image")
    found = kind_of(list_images(folder))
    assert found == ("drawing", "none of the images looked at can be read")


def test_a_sample_is_spread_over_all_classes(tmp_path: Path) -> None:
    make(tmp_path / "a", drawing)
    for number in range(200):
        path = tmp_path / "b" / f"class{number:03}" / "1.png"
        path.parent.mkdir(parents=True)
        photo().resize((20, 25)).save(path)
    assert kind_of(list_images(tmp_path)).kind == "photo"
