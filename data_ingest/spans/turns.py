"""Tells whether images look turned, by the strokes of images that are not."""

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage.feature import hog

Floats = npt.NDArray[np.floating]

_SIDE: Final = 48
_CELLS: Final = 4
_DIRECTIONS: Final = 8
STROKES: Final = (_CELLS, _CELLS, _DIRECTIONS)
TURNS: Final = (1, 2, 3)
"""Quarters, counter-clockwise."""
_FOLDS: Final = 7
_RIDGE: Final = 3e-4
"""About a tenth of the variance of a direction in one place."""


def stroke_directions(gray: Image.Image) -> npt.NDArray[np.float32]:
    """Root of the share of edges in each place and direction, of an image in mode L.

    Returns:
      `float32[4, 4, 8]`: rows, columns, directions up to a half turn. All zero where blank.
    """
    small = np.asarray(gray.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    cell, cells = (_SIDE // _CELLS,) * 2, (_CELLS,) * 2
    found = hog(small, _DIRECTIONS, cell, cells, block_norm="L1-sqrt", feature_vector=False)
    return np.asarray(found[0, 0], np.float32)


def turned(strokes: Floats, quarters: int) -> Floats:
    """The strokes `[N, 4, 4, 8]` of images turned counter-clockwise."""
    places = np.rot90(strokes, quarters, axes=(1, 2))
    return np.roll(places, quarters * _DIRECTIONS // 2, axis=3)


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
    both = np.concatenate([straight, other])
    spread = np.cov(both, rowvar=False) + _RIDGE * np.eye(both.shape[1])
    weights = np.linalg.solve(spread, (other - straight).mean(axis=0))
    nearer: npt.NDArray[np.bool_] = (images - both.mean(axis=0)) @ weights > 0
    return nearer
