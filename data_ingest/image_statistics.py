"""What an image looks like in a few numbers, by which sets of images can be compared."""

import io
import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIDE: Final = 128
"""Larger images are reduced to this side first: the figures are about shapes, not resolution."""

Ink = npt.NDArray[np.bool_]


class ImageStatistics(NamedTuple):
    """Figures of one image. Ink is what differs from the paper, paper what the border mostly is."""

    width: int
    """Pixels, as stored."""
    height: int
    form: str
    """How it is stored: `PNG 1-bit`, `PNG gray`, `PNG colour`, `JPEG gray` and so on."""
    paper: str
    """`light`, `dark`, or `blank` where there is no ink at all."""
    brightness: float
    """Mean, in [0, 1]."""
    contrast: float
    """Standard deviation of the brightness, in [0, 0.5]."""
    ink: float
    """Share of pixels, in [0, 1]."""
    roughness: float
    """Changes between ink and paper along rows and columns, per ink pixel, in [0, 4]: fine strokes
    about 1, specks of noise 4. 0 where blank."""
    ink_x: float
    """Where the middle of the ink is, from 0 (left) to 1. 0.5 where blank."""
    ink_y: float
    """From 0 (top) to 1."""
    ink_width: float
    """Share of the width that rows with ink span, in [0, 1]."""
    ink_height: float


def image_statistics(data: bytes) -> ImageStatistics:
    """Measures an encoded image that `check_image` has found sound.

    Transparent pixels are white, as for the model.
    """
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        form = f"{image.format} {_colours(image)}"
        gray = _gray(image)
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    light = float(border.mean()) > 0.5
    ink = gray < 0.5 if light else gray >= 0.5
    count = int(ink.sum())
    x, across = _along(ink.sum(axis=0))
    y, down = _along(ink.sum(axis=1))
    return ImageStatistics(
        width=width,
        height=height,
        form=form,
        paper="blank" if not count else "light" if light else "dark",
        brightness=float(gray.mean()),
        contrast=float(gray.std()),
        ink=count / ink.size,
        roughness=_changes(ink) / count if count else 0.0,
        ink_x=x,
        ink_y=y,
        ink_width=across,
        ink_height=down,
    )


def _colours(image: Image.Image) -> str:
    if "A" in image.getbands() or "transparency" in image.info:
        return "with transparency"
    return {"1": "1-bit", "L": "gray", "I": "gray", "I;16": "gray"}.get(image.mode, "colour")


def _gray(image: Image.Image) -> npt.NDArray[np.float32]:
    """`[H, W]` in [0, 1], at most `_SIDE` pixels a side."""
    if _colours(image) == "with transparency":
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode.startswith("I"):
        # 16 bits: Pillow clips instead of scaling.
        gray = Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
    else:
        gray = image.convert("L")
    gray.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(gray, np.float32) / np.float32(255)


def _changes(ink: Ink) -> int:
    padded = np.pad(ink, 1)
    return int(
        np.count_nonzero(padded[1:] != padded[:-1])
        + np.count_nonzero(padded[:, 1:] != padded[:, :-1])
    )


def _along(count: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Middle and extent of the ink along one side, of which `count` are the ink pixels."""
    total = int(count.sum())
    if not total:
        return 0.5, 0.0
    places = (np.arange(len(count)) + 0.5) / len(count)
    first, last = np.flatnonzero(count)[[0, -1]]
    return float(places @ count / total), float(last - first + 1) / len(count)


def bin_of(name: str, value: float | str) -> str:
    """The range that a figure lies in, by a name that sorts as the ranges do.

    Ranges do not depend on the data. TFDV's own histograms do: there, a single outlier among
    thousands of values moves their divergence from 0.01 to 0.5.
    """
    if isinstance(value, str):
        return value
    if name in _LOGARITHMIC:
        # Half octaves; a pixel more or less is the same, twice as many is not.
        step = round(2 * math.log2(value)) if value > 0 else -99
        return f"{step:+04d}"
    return f"{math.floor(value * _STEPS[name]):02d}"


_LOGARITHMIC: Final = frozenset({"width", "height", "ink", "class_size"})
_STEPS: Final = {
    "brightness": 20,
    "contrast": 40,
    "roughness": 10,
    "ink_x": 20,
    "ink_y": 20,
    "ink_width": 20,
    "ink_height": 20,
}
