"""Test-time averaging: an image is embedded as it is and slightly turned and zoomed."""

import math
from typing import Any, Final

import keras
import tensorflow as tf

from components.augment import warp

TURN: Final = math.radians(8.0)
"""Angle by which a view is turned, radians."""
ZOOM: Final = 1.1
"""How many times larger or smaller a view is."""
VIEWS: Final = (
    (0.0, 1.0),
    *((angle, zoom) for angle in (TURN, -TURN) for zoom in (ZOOM, 1 / ZOOM)),
)
"""Angle and zoom of each view. Shifts are left to the framing."""


@keras.saving.register_keras_serializable(package="siamese")
class Views(keras.layers.Layer):
    """Turns N images into `len(VIEWS) * N`, one view after the other; in training it does nothing.

    The arithmetic is float32 whatever the precision of the network.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32"} | kwargs)

    def call(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """`float32[N, S, S, C]` to `float32[len(VIEWS) * N, S, S, C]`, paper (0) outside."""
        if training:
            return images
        return tf.concat([_view(images, *view) for view in VIEWS], axis=0)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        return (None, *input_shape[1:])


@keras.saving.register_keras_serializable(package="siamese")
class MeanOfViews(keras.layers.Layer):
    """Takes the mean of the embeddings of an image's views; in training it does nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32"} | kwargs)

    def call(self, embeddings: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """`float32[len(VIEWS) * N, D]` to `float32[N, D]`."""
        if training:
            return embeddings
        return tf.reduce_mean(tf.stack(tf.split(embeddings, len(VIEWS))), axis=0)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        return (None, *input_shape[1:])


def _view(images: tf.Tensor, angle: float, zoom: float) -> tf.Tensor:
    count = tf.shape(images)[0]

    def each(value: float) -> tf.Tensor:
        return tf.fill([count], tf.constant(value, tf.float32))

    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    return warp(
        images,
        matrix=((each(cos), each(-sin)), (each(sin), each(cos))),
        shift=(each(0.0), each(0.0)),
    )
