"""Tells whether images look turned, by the strokes of images that are not."""

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Floats = npt.NDArray[np.floating]

_SIDE: Final = 48
_CELLS: Final = 4
_DIRECTIONS: Final = 8
STROKES: Final = (_CELLS, _CELLS, _DIRECTIONS)
TURNS: Final = (1, 2, 3)
"""Quarters, counter-clockwise."""
_FOLDS: Final = 7
_PENALTY: Final = 0.1


def stroke_directions(gray: Image.Image) -> npt.NDArray[np.float32]:
    """Root of the share of edges in each place and direction, of an image in mode L.

    Returns:
      `float32[4, 4, 8]`: rows, columns, directions in which it gets lighter, counter-clockwise from
      the right. All zero where blank.
    """
    small = gray.resize((_SIDE + 2, _SIDE + 2), Image.Resampling.BOX).filter(ImageFilter.BoxBlur(1))
    light = np.asarray(small, np.float32)
    x, y = light[1:-1, 2:] - light[1:-1, :-2], light[:-2, 1:-1] - light[2:, 1:-1]
    direction = np.rint(np.arctan2(y, x) / (2 * np.pi / _DIRECTIONS)).astype(int) % _DIRECTIONS
    row, column = np.indices(direction.shape) * _CELLS // _SIDE
    place = np.ravel_multi_index((row, column, direction), STROKES)
    edges = np.bincount(place.ravel(), np.hypot(x, y).ravel(), minlength=int(np.prod(STROKES)))
    strokes: npt.NDArray[np.float32] = (
        np.sqrt(edges / max(edges.sum(), 1.0)).reshape(STROKES).astype(np.float32)
    )
    return strokes


def turned(strokes: Floats, quarters: int) -> Floats:
    """The strokes `[N, 4, 4, 8]` of images turned counter-clockwise."""
    places = np.rot90(strokes, quarters, axes=(1, 2))
    return np.roll(places, quarters * _DIRECTIONS // 4, axis=3)


def looks_turned(
    new: Floats, old: Floats, units: npt.NDArray[np.int64], quarters: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which images look more like the reference turned than like the reference as it is.

    A ridge regression tells the two apart. No image of the reference is judged by its own unit.

    Args:
      new, old: strokes `[N, 4, 4, 8]` of the images and of the reference.
      units: `[N]`, numbers from 0 of the reference's groups or classes, at least two.
      quarters: how far, of `TURNS`.
    """
    straight, other = (side.reshape(len(old), -1) for side in (old, turned(old, quarters)))
    folds, judged = units % _FOLDS, np.zeros(len(old), bool)
    for fold in np.unique(folds):
        kept = folds != fold
        judged[~kept] = _judge(straight[~kept], straight[kept], other[kept])
    return _judge(new.reshape(len(new), -1), straight, other), judged


def _judge(images: Floats, straight: Floats, other: Floats) -> npt.NDArray[np.bool_]:
    both = np.concatenate([straight, other]).astype(np.float64)
    middle = both.mean(axis=0)
    scatter = (both - middle).T @ (both - middle)
    size = len(scatter)
    scatter += max(_PENALTY * np.trace(scatter) / size, 1e-9) * np.eye(size)
    weights = np.linalg.solve(scatter, (other - straight).sum(axis=0, dtype=np.float64))
    nearer: npt.NDArray[np.bool_] = (images - middle) @ weights > 0
    return nearer
