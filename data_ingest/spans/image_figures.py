"""Measures images, counts the figures of spans in ranges, and how much they differ by nature."""

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_ingest.progress import counted
from data_ingest.sampling.draws import Draws, Ints, stable_hash
from data_ingest.sources.images import upright
from data_ingest.sources.layout import ImageFile, ImageReader, list_images
from data_ingest.spans.turns import STROKES, stroke_directions

Floats = npt.NDArray[np.float64]

_SIDE: Final = 128
"""Larger images are reduced to this side first: the figures are about shapes, not resolution."""
_DRAWS: Final = 100
_FEWEST_UNITS: Final = 4
"""With fewer groups, classes show how much images differ by nature."""
_LOGARITHMIC: Final = frozenset({"width", "height", "ink", "sharpness", "class_size"})
_STEPS: Final = {"contrast": 40, "roughness": 10}
"""Ranges a unit; 20 for the other figures."""
_COLOURS: Final = {"1": "1-bit", "L": "gray"}
"""Of the modes that stored forms have; RGB is `colour`."""


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
    sharpness: float
    """Mean step between neighbouring pixels, weighted by itself, as a share of the brightness that
    the image spans, in [0, 1]: edges of one step 1, blurred ones less. 0 where nothing changes."""
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


FIGURES: Final = (*ImageStatistics._fields, "class_size")


@dataclass(frozen=True)
class ImageFigures:
    """A column a figure, all of one length."""

    groups: tuple[str, ...]
    classes: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    """`FIGURES`, each value the name of a range."""
    strokes: npt.NDArray[np.float32] = field(compare=False)
    """`[N, 4, 4, 8]`, `stroke_directions` of each."""
    rejected: int = 0
    """Images that were to be measured, too, and cannot be used."""

    def __len__(self) -> int:
        return len(self.groups)

    def share(self, figure: str) -> dict[str, float]:
        """Share of the images by value."""
        counts = Counter(self.columns[figure])
        return {value: count / len(self) for value, count in sorted(counts.items())}


def measure_images(spans: Sequence[Sequence[Path]], *, limit: int) -> ImageFigures:
    """Measures the images of some spans; of more than `limit`, always the same ones.

    Args:
      spans: the zips of each. `class_size` counts within a span.
      limit: most images that are measured.
    """
    listed: list[tuple[ImageFile, int]] = []
    for containers in spans:
        files = [file for container in containers for file in list_images(container)]
        sizes = Counter(file.class_name for file in files)
        listed += [(file, sizes[file.class_name]) for file in files]
    listed.sort(key=lambda item: (stable_hash(0, item[0].uri), item[0].container))
    # One zip after another: there may be more than can be open.
    chosen = sorted(listed[:limit], key=lambda item: item[0].container)
    kept: list[ImageFile] = []
    measured: list[dict[str, float | str]] = []
    strokes: list[npt.NDArray[np.float32]] = []
    rejected: list[tuple[ImageFile, str]] = []
    with ImageReader() as reader:
        counting = counted((file for file, _ in chosen), "Measuring images", len(chosen))
        for at, file, data in reader.sound(counting, rejected):
            gray, statistics = _measured(data)
            measured.append({**statistics._asdict(), "class_size": chosen[at][1]})
            strokes.append(stroke_directions(gray))
            kept.append(file)
    return ImageFigures(
        tuple(file.group for file in kept),
        tuple(file.class_name for file in kept),
        {name: tuple(bin_of(name, one[name]) for one in measured) for name in FIGURES},
        np.array(strokes, np.float32).reshape(-1, *STROKES),
        len(rejected),
    )


def natural_divergences(reference: ImageFigures, *, like: ImageFigures) -> dict[str, float]:
    """How far, in each figure, a few of the reference's groups can be from its other groups.

    New groups differ from known ones without anything being wrong, one alone more than many
    together. So as many groups as `like` has, half of the reference's at most, are drawn a hundred
    times; the greatest divergence from the rest is what counts. 0 where there are too few.
    """
    units, count = reference.groups, len(set(like.groups))
    if len(set(units)) < _FEWEST_UNITS:
        units, count = reference.classes, len(set(like.classes))
    names, unit_at = np.unique(units, return_inverse=True)
    if len(names) < _FEWEST_UNITS:
        return dict.fromkeys(reference.columns, 0.0)
    count = min(count, len(names) // 2)
    drawn = np.zeros((_DRAWS, len(names)), bool)
    for number, row in enumerate(drawn):
        row[Draws(0, f"natural divergence/{count}", number).order(len(names))[:count]] = True
    greatest = {}
    for figure, column in reference.columns.items():
        values, value_at = np.unique(column, return_inverse=True)
        table = np.zeros((len(names), len(values)))
        np.add.at(table, (unit_at, value_at), 1)
        greatest[figure] = float(divergence(drawn @ table, ~drawn @ table).max())
    return greatest


def divergence(one: Floats, other: Floats) -> Floats:
    """Jensen-Shannon divergence (Lin 1991, equation 4.1, base 2), in [0, 1].

    Args:
      one, other: `[..., V]`, counts of the same values, not all of them zero.

    Returns:
      `[...]`.
    """
    p = one / one.sum(axis=-1, keepdims=True)
    q = other / other.sum(axis=-1, keepdims=True)
    between = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return np.maximum(between, 0.0)


def image_statistics(data: bytes) -> ImageStatistics:
    """Measures an encoded image in its stored form."""
    return _measured(data)[1]


def _measured(data: bytes) -> tuple[Image.Image, ImageStatistics]:
    """An image, reduced and in mode L, and its figures."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        form = f"{image.format} {_COLOURS.get(image.mode, 'colour')}"
        small = upright(image).convert("L")
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    gray = np.asarray(small, np.float32) / np.float32(255)
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    light = float(border.mean()) > 0.5
    ink = gray < 0.5 if light else gray >= 0.5
    count = int(ink.sum())
    padded = np.pad(ink, 1)
    changes = sum(int(np.count_nonzero(np.diff(padded, axis=axis))) for axis in (0, 1))
    x, across = _along(ink.sum(axis=0))
    y, down = _along(ink.sum(axis=1))
    return small, ImageStatistics(
        width=width,
        height=height,
        form=form,
        paper="blank" if not count else "light" if light else "dark",
        brightness=float(gray.mean()),
        contrast=float(gray.std()),
        sharpness=_sharpness(gray),
        ink=count / ink.size,
        roughness=changes / count if count else 0.0,
        ink_x=x,
        ink_y=y,
        ink_width=across,
        ink_height=down,
    )


def bin_of(name: str, value: float | str) -> str:
    """The range that a figure lies in, by a name that sorts as the ranges do.

    Ranges do not depend on the data. Those of TFDV's own histograms do, so that a single outlier
    can make two of them look different.
    """
    if isinstance(value, str):
        return value
    if name in _LOGARITHMIC:
        # Half octaves; a pixel more or less is the same, twice as many is not.
        step = round(2 * math.log2(value)) if value > 0 else -99
        return f"{step:+04d}"
    return f"{math.floor(value * _STEPS.get(name, 20)):02d}"


def _sharpness(gray: npt.NDArray[np.float32]) -> float:
    steps = np.concatenate([np.abs(np.diff(gray, axis=axis)).ravel() for axis in (0, 1)])
    return float(steps @ steps / (steps.sum() * np.ptp(gray))) if steps.any() else 0.0


def _along(count: Ints) -> tuple[float, float]:
    """Middle and extent of the ink along one side, of which `count` are the ink pixels."""
    total = int(count.sum())
    if not total:
        return 0.5, 0.0
    places = (np.arange(len(count)) + 0.5) / len(count)
    first, last = np.flatnonzero(count)[[0, -1]]
    return float(places @ count / total), float(last - first + 1) / len(count)


def _entropy(shares: Floats) -> Floats:
    logarithms = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: Floats = -(shares * logarithms).sum(axis=-1)
    return entropy
