"""Generated alphabets to train on besides the data's own: more classes than any data has."""

import functools
import logging
import time
from typing import Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from components.train_settings import Recipe
from data_ingest.glyphs import SIDE, WRITERS, draw_alphabet
from data_ingest.index import ImageIndex, ImageRef
from serving import Framing
from serving.preprocessing import framed

ALPHABETS: Final = 100
CHARACTERS: Final = 25
SEED: Final = 2**31
"""No synthetic data set can have it, so what is trained on is never what is evaluated on."""

logger = logging.getLogger(__name__)


def generated_images(
    recipe: Recipe, *, alphabets: int = ALPHABETS, characters: int = CHARACTERS
) -> tuple[ImageIndex, npt.NDArray[np.uint8]]:
    """Draws alphabets: their index, and `uint8[n, S, S]` with ink 255, a row each.

    They are the same for all seeds of training. A hundred take 40 s, and 40 MB at 28 pixels; the
    last ones are kept, since one model takes several trainings.
    """
    return _drawn(recipe.image_size, recipe.framing, alphabets, characters)


@functools.lru_cache(maxsize=1)
def _drawn(
    size: int, framing: Framing, alphabets: int, characters: int
) -> tuple[ImageIndex, npt.NDArray[np.uint8]]:
    logger.info(f"Drawing {alphabets} alphabets to train on, besides the data's own")
    started = time.monotonic()

    @tf.function(input_signature=[tf.TensorSpec([None, SIDE, SIDE], tf.bool)])
    def prepared(drawings: tf.Tensor) -> tf.Tensor:
        ink = framed(
            drawings,
            lambda one: tf.cast(one, tf.float32)[..., tf.newaxis],
            size=size,
            framing=framing,
        )
        return tf.cast(tf.round(ink[..., 0] * 255.0), tf.uint8)

    refs: list[ImageRef] = []
    images = []
    for number in range(1, alphabets + 1):
        group = f"Generated_{number:03}"
        drawn = draw_alphabet(number, characters=characters, writers=WRITERS, seed=SEED)
        for character, drawings in enumerate(drawn, start=1):
            name = f"{group}/character{character:02}"
            refs += [ImageRef(group, name, one, f"{one:02}") for one in range(1, WRITERS + 1)]
            images.append(prepared(tf.constant(drawings)).numpy())
    logger.info(f"Drew {len(refs)} images in {time.monotonic() - started:.0f} s")
    # Groups, classes and keys count up: the rows are in the order of the index.
    return ImageIndex.build(refs), np.concatenate(images)
