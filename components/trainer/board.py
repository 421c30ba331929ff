"""Writes what TensorBoard shows besides curves: batches, and embeddings with their images."""

import csv
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image
from tensorboard.plugins import projector

from components.trainer.pair_data import Images, PairData

_BATCH_SIDE: Final = 8
"""Images of a batch that are shown side by side, and as many lines of them."""
MOST_IMAGES: Final = 1000
"""More are slow to look at."""
_SPRITE_SIDE: Final = 8192
"""Largest picture that the projector takes, pixels."""
_VECTORS: Final = "embeddings.tsv"
_LABELS: Final = "embeddings_labels.tsv"
_SPRITE: Final = "embeddings_sprite.png"


def show_batch(images: npt.NDArray[np.float32], step: int) -> None:
    """Writes some images of a batch, `[N, H, W, C]` in [0, 1] or about, as one picture."""
    levels = (255 * images.clip(0, 1)).round().astype(np.uint8)
    picture = sheet(levels, across=_BATCH_SIDE, down=_BATCH_SIDE)
    tf.summary.image("train/batch", picture[np.newaxis], step=step)


def projected(data: PairData) -> npt.NDArray[np.int64]:
    """Rows of the images that are shown, evenly spread over all classes."""
    most = min(MOST_IMAGES, (_SPRITE_SIDE // max(data.images.shape[1:3])) ** 2)
    rows = len(data.index)
    return np.unique(np.linspace(0, rows - 1, min(rows, most)).round().astype(np.int64))


def write_projector(folder: Path, data: PairData, vectors: npt.NDArray[np.floating]) -> None:
    """Writes embeddings, names and images where TensorBoard finds them.

    Args:
      folder: a log folder of TensorBoard.
      data: the images, one or more.
      vectors: `[n, D]`, their embeddings.
    """
    np.savetxt(folder / _VECTORS, vectors, fmt="%.5g", delimiter="\t")
    index = data.index
    with (folder / _LABELS).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, dialect="excel-tab")
        table.writerow(("class", "group"))
        table.writerows((index.class_name(row), index.group_name(row)) for row in range(len(index)))
    across = int(np.ceil(np.sqrt(len(data.images))))
    sprite = sheet(data.images, across=across, down=across)
    Image.fromarray(sprite.squeeze()).save(folder / _SPRITE)
    config = projector.ProjectorConfig()
    shown = config.embeddings.add(
        tensor_name="held-out images", tensor_path=_VECTORS, metadata_path=_LABELS
    )
    shown.sprite.image_path = _SPRITE
    height, width = data.images.shape[1:3]
    shown.sprite.single_image_dim.extend((width, height))
    projector.visualize_embeddings(str(folder), config)


def sheet(images: Images, *, across: int, down: int) -> Images:
    """Images `[n, H, W, C]` line by line on one, `[down * H, across * W, C]`; the rest of it is 0.

    Those that have no room are left out.
    """
    height, width, channels = images.shape[1:]
    cells = np.zeros((down * across, height, width, channels), images.dtype)
    cells[: len(images)] = images[: len(cells)]
    lines = cells.reshape(down, across, height, width, channels).swapaxes(1, 2)
    return lines.reshape(down * height, across * width, channels)
