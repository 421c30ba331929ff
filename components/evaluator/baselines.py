"""Recognises by distances between pictures, without learning, on the same trials as the model."""

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
from skimage.feature import hog, local_binary_pattern

from components.evaluator.recognisers import EncodedImage, Floats, Recogniser, answer
from components.evaluator.settings import (
    BASELINE_TITLES,
    FORGERY_METRICS,
    Compared,
    one_shot_metric,
)
from components.evaluator.statistics import ScoredPairs, equal_error_rate
from components.evaluator.trials import RecordedTrials, recorded_trials
from data_ingest.progress import counted
from data_ingest.records.features import split_files
from data_ingest.records.unsound import naming_unsound
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT
from data_ingest.sampling.trials import Trial
from data_ingest.sources.images import upright
from data_ingest.sources.kinds import Kind

Picture = npt.NDArray[np.uint8]

_SIDE: Final = 105
_FEATURE_SIDE: Final = 64
"""Of HOG and LBP, which more pixels serve no better and cost more."""
_CELLS: Final = 4
"""Rows and columns of patches that LBP counts patterns in."""
_PATTERNS: Final = 59
"""Uniform patterns of eight neighbours, and one for the others (Ojala et al. 2002)."""
_COLOURS: Final = 3
_BLACK_BELOW: Final = 128
_KEPT_PICTURES: Final = 1024
"""More than a set of trials has: 40 classes of a query and 24 support images."""


@dataclass(frozen=True)
class Baseline:
    """A distance between images; a class is as near as the nearest of its support images."""

    name: str
    features: Callable[[bytes], Any]
    """Of an encoded image."""
    distances: Callable[[Any, Sequence[Any]], list[float]]
    """From such features to others. Exact where they are least; the rest may be lower bounds."""

    @property
    def title(self) -> str:
        return BASELINE_TITLES[self.name]

    def recogniser(self, encoded: EncodedImage) -> Recogniser:
        """Answers with negated distances, `float64[way]`; that of the nearest class is exact."""
        features = self._kept_features(encoded)

        def nearness(trials: Sequence[Trial]) -> Iterator[Floats]:
            for trial in counted(trials, f"Answering trials by {self.title}", len(trials)):
                query, *support = (features(image) for image in trial.images)
                distances = np.array(self.distances(query, support))
                yield -distances.reshape(trial.way, -1).min(axis=1)

        return nearness

    def scored(self, encoded: EncodedImage, pairs: Sequence[tuple[int, int, int]]) -> ScoredPairs:
        """Pairs of two images and a label (1: of one class), scored by their negated distance."""
        features = self._kept_features(encoded)
        pairs = sorted(pairs)  # so that those of one image come together
        nearness = [-self.distances(features(a), [features(b)])[0] for a, b, _ in pairs]
        return ScoredPairs(nearness, [label for *_, label in pairs])

    def _kept_features(self, encoded: EncodedImage) -> Callable[[int], Any]:
        # The trials of a set have their images in common.
        return lru_cache(_KEPT_PICTURES)(lambda image: self.features(encoded(image)))


def picture(encoded: bytes) -> Picture:
    """An encoded image as it looks, `uint8[105, 105, C]`, C being 3 where it has colours, else 1.

    Other sizes are averaged.
    """
    return _resized(encoded, _SIDE, gray=False)


def _resized(encoded: bytes, side: int, *, gray: bool) -> Picture:
    with Image.open(io.BytesIO(encoded)) as image:
        shown = upright(image)
        if gray:
            shown = shown.convert("L")
        if shown.size != (side, side):
            shown = shown.resize((side, side), Image.Resampling.BOX)
        return np.asarray(shown).reshape(side, side, -1)


def pixel_distances(query: Picture, others: Sequence[Picture]) -> list[float]:
    """Squared L2 distance to each, over three colours, which orders pictures as the distance does.

    A gray picture has three equal colours.
    """
    # In whole numbers, or equal distances would differ by how they were rounded.
    wide = query.astype(np.int32)
    squares = [np.square(other - wide) for other in others]
    return [
        float(square.sum(dtype=np.int64) * (_COLOURS // square.shape[-1])) for square in squares
    ]


def gradients(encoded: bytes) -> Floats:
    """Histograms of oriented gradients of an encoded image's brightness, `float32[1764]`.

    Dalal & Triggs 2005, "Histograms of oriented gradients for human detection", CVPR: 9
    orientations in cells of 8 by 8 of 64 by 64 pixels, normalised by blocks of 2 by 2 cells.
    """
    gray = _resized(encoded, _FEATURE_SIDE, gray=True)[..., 0]
    histograms = hog(gray, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2))
    return np.asarray(histograms, np.float32)


def patterns(encoded: bytes) -> Floats:
    """Local binary patterns of an encoded image's brightness, `float32[944]`.

    Ahonen et al. 2006, "Face description with local binary patterns", PAMI 28:2037: how often each
    of 59 patterns of eight neighbours occurs in each of 4 by 4 patches of 64 by 64 pixels. Square
    roots of the shares, so that the L2 distance is Hellinger's.
    """
    gray = _resized(encoded, _FEATURE_SIDE, gray=True)[..., 0]
    found = local_binary_pattern(gray, P=8, R=1, method="nri_uniform").astype(np.int64)
    patch = np.repeat(np.arange(_CELLS), _FEATURE_SIDE // _CELLS)
    cell = (patch[:, None] * _CELLS + patch) * _PATTERNS + found
    counts = np.bincount(cell.ravel(), minlength=_CELLS**2 * _PATTERNS)
    return np.sqrt(counts / (_FEATURE_SIDE // _CELLS) ** 2).astype(np.float32)


def vector_distances(query: Floats, others: Sequence[Floats]) -> list[float]:
    """Squared L2 distance to each."""
    return [float(np.square(other - query).sum(dtype=np.float64)) for other in others]


def ink(encoded: bytes) -> KDTree:
    """The ink of an encoded image: dark pixels, or light ones if most of its border is dark.

    As in the demonstration that comes with Omniglot (`demo_classification.py`), where images are
    black on white.

    Returns:
      The points `[P, 2]`, row and column of the pixels less their mean, as a tree.
    """
    black = _resized(encoded, _SIDE, gray=True)[..., 0] < _BLACK_BELOW
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


_PIXELS: Final = Baseline("pixel_1nn", picture, pixel_distances)
QUICK_BASELINES: Final = (
    _PIXELS,
    Baseline("hog", gradients, vector_distances),
    Baseline("lbp", patterns, vector_distances),
)
"""Of images of any kind; a thousand trials take seconds."""
_OF_DRAWINGS: Final = (Baseline("modified_hausdorff", ink, modified_hausdorff_distances),)
"""A hundred 20-way trials a second; where there is no ink, all pixels are, and it takes thirty
times as long."""
BASELINES: Final = (*QUICK_BASELINES, *_OF_DRAWINGS)


def baselines(kind: Kind, *, slow: bool = False) -> tuple[Baseline, ...]:
    """What a model is compared with on images of a kind.

    Args:
      kind: of the images.
      slow: whether to take what takes long, too, where it makes sense.
    """
    return BASELINES if slow and kind == "drawing" else QUICK_BASELINES


def baseline_figures(examples: Path, compared: Sequence[Baseline] = QUICK_BASELINES) -> Compared:
    """What baselines come to on the trials and single pairs of an Examples artifact.

    Args:
      examples: its URI; its `one_shot` split is read.
      compared: the baselines.

    Returns:
      `<protocol>_<way>way_accuracy`, `eer`, `auc` and, of signatures, `eer_skilled` and so on, of
      the trials and pairs that occur.

    Raises:
      InputError: as `naming_unsound`.
    """
    figures: Compared = {}
    with naming_unsound(split_files(examples / f"Split-{ONE_SHOT_SPLIT}")):
        recorded = recorded_trials(examples)
        for baseline in compared:
            for name, value in (
                *_accuracies(baseline, recorded),
                *_verification(baseline, recorded),
            ):
                figures.setdefault(name, {})[baseline.name] = value
    return dict(sorted(figures.items()))


def pixel_nearest_neighbour_accuracy(examples: Path) -> Compared:
    """One-shot accuracy of the nearest neighbour by pixel distance; ties share the credit.

    What is quick enough to be said of every run. Arguments, result and errors are those of
    `baseline_figures`, without the figures of single pairs.
    """
    with naming_unsound(split_files(examples / f"Split-{ONE_SHOT_SPLIT}")):
        accuracies = sorted(_accuracies(_PIXELS, recorded_trials(examples)))
    return {name: {_PIXELS.name: value} for name, value in accuracies}


def _accuracies(baseline: Baseline, recorded: RecordedTrials) -> Iterator[tuple[str, float]]:
    recogniser = baseline.recogniser(recorded.images.__getitem__)
    for (protocol, way), trials in recorded.trials.items():
        earned = answer(recogniser, trials).earned
        yield one_shot_metric(protocol, way), float(np.mean(earned))


def _verification(baseline: Baseline, recorded: RecordedTrials) -> Iterator[tuple[str, float]]:
    everything = [pair for pairs in recorded.pairs.values() for pair in pairs]
    parts = {"": everything} | {f"_{name}": pairs for name, pairs in recorded.pairs.items()}
    for suffix, pairs in parts.items():
        if suffix and f"eer{suffix}" not in FORGERY_METRICS:
            continue
        scored = baseline.scored(recorded.images.__getitem__, pairs)
        if scored.same.any() and scored.different.any():
            yield f"eer{suffix}", equal_error_rate(scored.same, scored.different)
            yield f"auc{suffix}", scored.auc()[0]
