"""Draws a map of embeddings: images that a model finds alike lie beside each other."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from scipy.optimize import linear_sum_assignment

from data_ingest.sources.images import upright

_CLASSES: Final = 20
_IMAGES: Final = 12
"""Of each class, at most."""
_FEWEST: Final = 12
"""Images that make a map."""
_SPARE: Final = 2.2
"""Places for each image, so that what is apart stays apart."""
_PIXELS: Final = 48
"""Of a place; the frame in the colour of its class takes 3 on each side."""
_FRAME: Final = 3
_WIDER: Final = 1.5

Floats = npt.NDArray[np.floating[Any]]


class EmbeddingMap(NamedTuple):
    """A WebP, and how many classes and images are on it."""

    picture: bytes
    classes: int
    images: int


def draw_map(
    by_class: Mapping[str, Sequence[int]],
    vectors: Callable[[Sequence[int]], Floats],
    encoded: Callable[[int], bytes],
) -> EmbeddingMap | None:
    """Places up to 240 images of 20 classes by t-SNE, each in a place of its own.

    Args:
      by_class: numbers of images by class; the classes with the most images are taken.
      vectors: gives embeddings `[N, D]` of images.
      encoded: gives an image.

    Returns:
      None where there are too few images.
    """
    most = max((min(len(own), _IMAGES) for own in by_class.values()), default=0)
    largest = [name for name, own in by_class.items() if len(own) >= most]
    # Of equally large classes some of every group, not all of the first.
    spread = np.linspace(0, len(largest) - 1, _CLASSES).round().astype(int)
    rest = sorted(by_class, key=lambda name: -len(by_class[name]))
    chosen = [largest[at] for at in spread] if len(largest) > _CLASSES else rest[:_CLASSES]
    images = [image for name in chosen for image in by_class[name][:_IMAGES]]
    colours = [at for at, name in enumerate(chosen) for _ in by_class[name][:_IMAGES]]
    if len(images) < _FEWEST:
        return None
    # Takes a second to import.
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    placed = TSNE(perplexity=min(15, (len(images) - 1) / 3), init="random", random_state=0)
    # So few points are placed in a second by one thread; several wait for each other.
    with threadpool_limits(1):
        embedding = placed.fit_transform(np.asarray(vectors(images), np.float64))
    rows, columns = _places(embedding)
    tall, wide = int(rows.max()) + 1, int(columns.max()) + 1
    canvas = Image.new("RGBA", (wide * _PIXELS, tall * _PIXELS))
    for image, colour, row, column in zip(images, colours, rows, columns, strict=True):
        tile = _tile(encoded(image), _colour(colour))
        canvas.paste(tile, (int(column) * _PIXELS, int(row) * _PIXELS))
    stream = io.BytesIO()
    canvas.save(stream, "webp", quality=70, method=6)
    return EmbeddingMap(stream.getvalue(), len(chosen), len(images))


def _places(points: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of a grid: every point has its own, all together as near as can be."""
    tall = int(np.ceil(np.sqrt(len(points) * _SPARE / _WIDER)))
    wide = int(np.ceil(tall * _WIDER))
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.maximum(high - low, 1e-9) * [wide - 1, tall - 1]
    cells = np.array([(column, row) for row in range(tall) for column in range(wide)])
    distance = ((scaled[:, np.newaxis] - cells) ** 2).sum(axis=2)
    _, taken = linear_sum_assignment(distance)
    return taken // wide, taken % wide


def _tile(encoded: bytes, colour: tuple[int, int, int]) -> Image.Image:
    side = _PIXELS - 2 - 2 * _FRAME
    with Image.open(io.BytesIO(encoded)) as opened:
        image = ImageOps.contain(upright(opened).convert("RGB"), (side, side))
    tile = Image.new("RGBA", (_PIXELS - 2, _PIXELS - 2), colour)
    tile.paste((255, 255, 255), (_FRAME, _FRAME, side + _FRAME, side + _FRAME))
    at = (_FRAME + (side - image.width) // 2, _FRAME + (side - image.height) // 2)
    tile.paste(image, at)
    return tile


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue = mpl.colormaps["tab20"](number % 20)[:3]
    return round(255 * red), round(255 * green), round(255 * blue)
