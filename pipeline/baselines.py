"""Recognisers without learning, on the same trials as the model."""

import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image

from data_ingest import features

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

    distances: dict[tuple[str, int, str], list[tuple[float, int]]] = defaultdict(list)
    for example in read_examples(examples, "one_shot"):
        values = example.features.feature
        trial = values[features.TRIAL].bytes_list.value[0].decode()
        if not trial:
            continue
        protocol = values[features.PROTOCOL].bytes_list.value[0].decode()
        way = values[features.WAY].int64_list.value[0]
        query = decoded(values[features.IMAGE_A].bytes_list.value[0])
        candidate = decoded(values[features.IMAGE_B].bytes_list.value[0])
        distance = float(np.square(query - candidate).sum())
        label = values[features.LABEL].int64_list.value[0]
        distances[protocol, way, trial].append((distance, label))

    earned: dict[str, list[float]] = defaultdict(list)
    for (protocol, way, _), candidates in distances.items():
        nearest = min(distance for distance, _ in candidates)
        labels = [label for distance, label in candidates if distance == nearest]
        earned[f"{protocol}_{way}way_accuracy"].append(sum(labels) / len(labels))
    return {name: float(np.mean(values)) for name, values in sorted(earned.items())}


def read_examples(examples: Path, split: str) -> Iterator[tf.train.Example]:
    """The records of one split of an Examples artifact."""
    files = sorted(str(path) for path in (examples / f"Split-{split}").glob("*.gz"))
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        yield tf.train.Example.FromString(record)
