"""Recognisers without learning, on the same trials as the model."""

import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from components.one_shot import trial_credit
from data_ingest.features import read_pairs
from data_ingest.protocols import ONE_SHOT_SPLIT

_SIDE = 105


def pixel_nearest_neighbour_accuracy(examples: Path) -> dict[str, float]:
    """One-shot accuracy of the nearest neighbour by pixel distance.

    The distance is the L2 distance of grey images, 105x105; ties share the credit.

    Args:
      examples: URI of an Examples artifact with a `one_shot` split.

    Returns:
      `<protocol>_<way>way_accuracy` → accuracy in [0, 1], for the protocols that occur.
    """
    pixels: dict[bytes, npt.NDArray[np.float32]] = {}

    def decoded(encoded: bytes) -> npt.NDArray[np.float32]:
        if encoded not in pixels:
            with Image.open(io.BytesIO(encoded)) as image:
                grey = image.convert("L")
                if grey.size != (_SIDE, _SIDE):
                    grey = grey.resize((_SIDE, _SIDE), Image.Resampling.BOX)
                pixels[encoded] = np.asarray(grey, np.float32).ravel()
        return pixels[encoded]

    trials: dict[tuple[str, int, str], list[tuple[int, float]]] = defaultdict(list)
    for pair in read_pairs(examples / f"Split-{ONE_SHOT_SPLIT}"):
        if pair.trial:
            distance = float(np.square(decoded(pair.image_a) - decoded(pair.image_b)).sum())
            trials[pair.protocol, pair.way, pair.trial].append((pair.label, distance))

    earned: dict[str, list[float]] = defaultdict(list)
    for (protocol, way, _), candidates in trials.items():
        labels = np.array([label for label, _ in candidates])
        nearness = np.array([-distance for _, distance in candidates], np.float32)
        credit = trial_credit(labels, nearness, np.full(len(labels), way))
        if credit is not None:
            earned[f"{protocol}_{way}way_accuracy"].append(credit)
    return {name: float(np.mean(values)) for name, values in sorted(earned.items())}
