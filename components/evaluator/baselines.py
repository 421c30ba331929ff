"""Recognises by distances between drawings, without learning, on the same trials as the model."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.spatial import KDTree

from components.evaluator.recognisers import EncodedImage, Floats, Recogniser, answer, told
from components.evaluator.settings import one_shot_metric
from components.evaluator.trials import recorded_trials
from data_ingest.records.features import split_files
from data_ingest.records.unsound import naming_unsound
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT
from data_ingest.sampling.trials import Trial
from data_ingest.sources.images import upright

Gray = npt.NDArray[np.uint8]

_SIDE: Final = 105
_BLACK_BELOW: Final = 128
_KEPT_PICTURES: Final = 1024
"""More than a set of trials has: 40 classes of a query and 24 support images."""


@dataclass(frozen=True)
class Baseline:
    """A distance between drawings; a class is as near as the nearest of its support images."""

    name: str
    title: str
    features: Callable[[bytes], Any]
    """Of an encoded image."""
    distances: Callable[[Any, Sequence[Any]], list[float]]
    """From such features to others. Exact where they are least; the rest may be lower bounds."""

    def recogniser(self, encoded: EncodedImage) -> Recogniser:
        """Answers with negated distances, `float64[way]`; that of the nearest class is exact."""
        # The trials of a set have their images in common.
        features = lru_cache(_KEPT_PICTURES)(lambda image: self.features(encoded(image)))

        def nearness(trials: Sequence[Trial]) -> Iterator[Floats]:
            for trial in told(trials, f"trials by {self.title}", total=len(trials)):
                query, *support = (features(image) for image in trial.images)
                distances = np.array(self.distances(query, support))
                yield -distances.reshape(trial.way, -1).min(axis=1)

        return nearness


def gray_picture(encoded: bytes) -> Gray:
    """An encoded image as it looks, `uint8[105, 105]`; other sizes are averaged."""
    with Image.open(io.BytesIO(encoded)) as image:
        gray = upright(image).convert("L")
        if gray.size != (_SIDE, _SIDE):
            gray = gray.resize((_SIDE, _SIDE), Image.Resampling.BOX)
        return np.asarray(gray)


def pixel_distances(query: Gray, others: Sequence[Gray]) -> list[float]:
    """Squared L2 distance to each, which orders pictures as the distance does."""
    # In whole numbers, or equal distances would differ by how they were rounded.
    differences = np.stack(others).astype(np.int32) - query
    distances = np.square(differences).sum(axis=(1, 2), dtype=np.int64)
    return [float(distance) for distance in distances]


def ink(encoded: bytes) -> KDTree:
    """The ink of an encoded image: dark pixels, or light ones if most of its border is dark.

    As in the demonstration that comes with Omniglot (`demo_classification.py`), where images are
    black on white.

    Returns:
      The points `[P, 2]`, row and column of the pixels less their mean, as a tree.
    """
    picture = gray_picture(encoded)
    black = picture < _BLACK_BELOW
    border = np.concatenate([black[0], black[-1], black[:, 0], black[:, -1]])
    return ink_of_pixels(~black if border.mean() > 0.5 else black)


def ink_of_pixels(is_ink: npt.NDArray[np.bool_]) -> KDTree:
    """The ink of a picture, `bool[H, W]`."""
    points = np.argwhere(is_ink).astype(np.float64)
    return KDTree(points - points.mean(axis=0) if len(points) else points)


def modified_hausdorff_distance(a: KDTree, b: KDTree, *, limit: float = np.inf) -> float:
    """The greater of the two mean distances from a point of one to the nearest of the other.

    Dubuisson & Jain 1994, "A modified Hausdorff distance for object matching", ICPR, pp. 566-568
    (their distance number 22), in pixels. From a picture without ink all others are infinitely far.

    Args:
      a, b: two drawings.
      limit: a distance above it may be given too low, but still above it; that takes half the time.
    """
    if not a.n or not b.n:
        return 0.0 if a.n == b.n else np.inf
    there = float(b.query(a.data)[0].mean())
    return there if there > limit else max(there, float(a.query(b.data)[0].mean()))


def modified_hausdorff_distances(query: KDTree, others: Sequence[KDTree]) -> list[float]:
    """`modified_hausdorff_distance` to each; what is not nearest may be lower than it is."""
    found: list[float] = []
    for other in others:
        limit = min(found, default=np.inf)
        found.append(modified_hausdorff_distance(query, other, limit=limit))
    return found


_PIXELS: Final = Baseline("pixel_1nn", "pixel 1-NN", gray_picture, pixel_distances)
BASELINES: Final = (
    _PIXELS,
    Baseline("modified_hausdorff", "Modified Hausdorff", ink, modified_hausdorff_distances),
)


def pixel_nearest_neighbour_accuracy(examples: Path) -> dict[str, float]:
    """One-shot accuracy of the nearest neighbour by pixel distance; ties share the credit.

    Args:
      examples: URI of an Examples artifact with a `one_shot` split.

    Returns:
      `<protocol>_<way>way_accuracy` → accuracy in [0, 1], for the protocols that occur.

    Raises:
      InputError: as `naming_unsound`.
    """
    with naming_unsound(split_files(examples / f"Split-{ONE_SHOT_SPLIT}")):
        recorded = recorded_trials(examples)
        recogniser = _PIXELS.recogniser(recorded.images.__getitem__)
        accuracy = {
            one_shot_metric(protocol, way): float(np.mean(answer(recogniser, trials).earned))
            for (protocol, way), trials in recorded.trials.items()
        }
    return dict(sorted(accuracy.items()))
