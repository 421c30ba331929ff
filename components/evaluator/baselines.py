"""Recognisers without learning, on the same trials as the model."""

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.spatial import KDTree

from components.evaluator.statistics import trial_credit
from data_ingest.records.features import read_pairs
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT

Gray = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]

_SIDE: Final = 105
_BLACK_BELOW: Final = 128


class Ink(NamedTuple):
    """The ink of a drawing."""

    points: Points
    """`[P, 2]`, row and column of the ink pixels less their mean."""
    nearest: KDTree
    """Finds the nearest of the points."""


@dataclass(frozen=True)
class Baseline:
    """A distance between drawings."""

    name: str
    title: str
    features: Callable[[bytes], Any]
    """Of an encoded image."""
    distances: Callable[[Any, Sequence[Any]], list[float]]
    """From such features to others. Exact where they are least; the rest may be lower bounds."""


def gray_picture(encoded: bytes) -> Gray:
    """An encoded image as `uint8[105, 105]`; transparent is white, other sizes are averaged."""
    with Image.open(io.BytesIO(encoded)) as image:
        if image.has_transparency_data:
            drawn = image.convert("RGBA")
            gray = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("L")
        else:
            gray = image.convert("L")
        if gray.size != (_SIDE, _SIDE):
            gray = gray.resize((_SIDE, _SIDE), Image.Resampling.BOX)
        return np.asarray(gray)


def pixel_distance(a: Gray, b: Gray) -> float:
    """Squared L2 distance of two pictures, which orders them as the distance does."""
    # In whole numbers, or equal distances would differ by how they were rounded.
    return float(np.square(a.astype(np.int32) - b.astype(np.int32)).sum(dtype=np.int64))


def ink(encoded: bytes) -> Ink:
    """The ink of an encoded image: dark pixels, or light ones if most of its border is dark.

    As in the demonstration that comes with Omniglot (`demo_classification.py`), where images are
    black on white.
    """
    picture = gray_picture(encoded)
    black = picture < _BLACK_BELOW
    border = np.concatenate([black[0], black[-1], black[:, 0], black[:, -1]])
    return ink_of_pixels(~black if border.mean() > 0.5 else black)


def ink_of_pixels(is_ink: npt.NDArray[np.bool_]) -> Ink:
    """The ink of a picture, `bool[H, W]`."""
    points = np.argwhere(is_ink).astype(np.float64)
    if len(points):
        points -= points.mean(axis=0)
    return Ink(points, KDTree(points))


def pixel_distances(query: Gray, others: Sequence[Gray]) -> list[float]:
    """`pixel_distance` to each."""
    return [pixel_distance(query, other) for other in others]


def modified_hausdorff_distance(a: Ink, b: Ink, *, limit: float = np.inf) -> float:
    """The greater of the two mean distances from a point of one to the nearest of the other.

    Dubuisson & Jain 1994, "A modified Hausdorff distance for object matching", ICPR, pp. 566-568
    (their distance number 22), in pixels. From a picture without ink all others are infinitely far.

    Args:
      a, b: two drawings.
      limit: a distance above it may be given too low, but still above it; that takes half the time.
    """
    if not len(a.points) or not len(b.points):
        return 0.0 if len(a.points) == len(b.points) else np.inf
    there = float(b.nearest.query(a.points)[0].mean())
    return there if there > limit else max(there, float(a.nearest.query(b.points)[0].mean()))


def modified_hausdorff_distances(query: Ink, others: Sequence[Ink]) -> list[float]:
    """`modified_hausdorff_distance` to each; what is not nearest may be lower than it is."""
    found: list[float] = []
    for other in others:
        limit = min(found, default=np.inf)
        found.append(modified_hausdorff_distance(query, other, limit=limit))
    return found


BASELINES: Final = (
    Baseline("pixel_1nn", "pixel 1-NN", gray_picture, pixel_distances),
    Baseline("modified_hausdorff", "Modified Hausdorff", ink, modified_hausdorff_distances),
)


def pixel_nearest_neighbour_accuracy(examples: Path) -> dict[str, float]:
    """One-shot accuracy of the nearest neighbour by pixel distance; ties share the credit.

    Args:
      examples: URI of an Examples artifact with a `one_shot` split.

    Returns:
      `<protocol>_<way>way_accuracy` → accuracy in [0, 1], for the protocols that occur.
    """
    decoded = lru_cache(maxsize=None)(gray_picture)
    trials: dict[tuple[str, int, str], list[tuple[int, float]]] = defaultdict(list)
    for pair in read_pairs(examples / f"Split-{ONE_SHOT_SPLIT}"):
        if pair.trial:
            distance = pixel_distance(decoded(pair.image_a), decoded(pair.image_b))
            trials[pair.protocol, pair.way, pair.trial].append((pair.label, distance))

    earned: dict[str, list[float]] = defaultdict(list)
    for (protocol, way, _), candidates in trials.items():
        labels = np.array([label for label, _ in candidates])
        nearness = np.array([-distance for _, distance in candidates], np.float32)
        credit = trial_credit(labels, nearness, np.full(len(labels), way))
        if credit is not None:
            earned[f"{protocol}_{way}way_accuracy"].append(credit)
    return {name: float(np.mean(values)) for name, values in sorted(earned.items())}
