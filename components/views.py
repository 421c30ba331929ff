"""Test-time averaging: an image is embedded as it is and slightly shifted."""

from typing import Any, Final

import keras
import tensorflow as tf

from components.augment import warp

SHIFT: Final = 2.5 / 35
"""Share of the side by which a view is shifted."""
VIEWS: Final = ((0.0, 0.0), (SHIFT, 0.0), (-SHIFT, 0.0), (0.0, SHIFT), (0.0, -SHIFT))
"""Shifts of each view along x and y, as shares of the side."""


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


def _view(images: tf.Tensor, shift_x: float, shift_y: float) -> tf.Tensor:
    side = images.shape[1]
    count = tf.shape(images)[0]

    def each(value: float) -> tf.Tensor:
        return tf.fill([count], tf.constant(value, tf.float32))

    return warp(
        images,
        matrix=((each(1.0), each(0.0)), (each(0.0), each(1.0))),
        shift=(each(shift_x * side), each(shift_y * side)),
    )
