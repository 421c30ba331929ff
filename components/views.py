"""Test-time averaging: an image is embedded in several slightly different views of itself."""

import math
from typing import Any, Final

import keras
import tensorflow as tf

from components.augment import warp

VIEWS: Final = (
    (8.0, 1.1, 0.06, 0.0),
    (-8.0, 1.1, -0.06, 0.0),
    (8.0, 0.9, 0.0, 0.06),
    (-8.0, 0.9, 0.0, -0.06),
)
"""Of each view: rotation in degrees, how much smaller it shows the image, and its shifts along x
and y as shares of the side."""


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


def _view(
    images: tf.Tensor, degrees: float, scale: float, shift_x: float, shift_y: float
) -> tf.Tensor:
    side = images.shape[1]
    count = tf.shape(images)[0]
    cos = scale * math.cos(math.radians(degrees))
    sin = scale * math.sin(math.radians(degrees))

    def each(value: float) -> tf.Tensor:
        return tf.fill([count], tf.constant(value, tf.float32))

    return warp(
        images,
        matrix=((each(cos), each(-sin)), (each(sin), each(cos))),
        shift=(each(shift_x * side), each(shift_y * side)),
    )
