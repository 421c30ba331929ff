"""Random affine distortions of a batch, in one TensorFlow operation."""

import math
from typing import Any, Final

import tensorflow as tf

ROTATION: Final = math.radians(15.0)
"""Largest rotation at strength 1, radians either way."""
SCALE: Final = 0.2
"""Largest change of width and, independently, of height at strength 1, as a share."""
SHEAR: Final = 0.3
SHIFT: Final = 0.1
"""Largest shift along each axis at strength 1, as a share of the side, of images seen whole."""
FRAMED_SHIFT: Final = 0.05
"""And of those that are framed by their ink."""


def augment(
    images: tf.Tensor,
    *,
    maps: tf.Tensor,
    seed: tf.Tensor,
    strength: float,
    largest_shift: float = SHIFT,
) -> tf.Tensor:
    """Distorts every image at random, and then as all of its class.

    Each part is drawn uniformly from its range, scaled by `strength`. The result depends on the
    arguments alone. What comes in from outside the image is paper (0).

    Args:
      images: `float32[N, S, S, C]`.
      maps: `float32[N, 2, 2]`: where (x, y) of the result, about the centre, comes from in the
        distorted image.
      seed: `int32[2]`.
      strength: 0 leaves images as they are, but for `maps`.
      largest_shift: at strength 1, as a share of the side.

    Returns:
      `float32[N, S, S, C]`, bilinear.
    """
    side = images.shape[1]
    drawn = tf.random.stateless_uniform([6, tf.shape(images)[0]], seed, -strength, strength)
    angle = ROTATION * drawn[0]
    width, height = tf.exp(SCALE * drawn[1]), tf.exp(SCALE * drawn[2])
    shear = SHEAR * drawn[3]
    shift_x, shift_y = largest_shift * side * drawn[4], largest_shift * side * drawn[5]
    cos, sin = tf.cos(angle), tf.sin(angle)
    own = tf.stack(linear_map(cos, sin, shear=shear, width=width, height=height), axis=-1)
    matrix = tf.matmul(tf.reshape(own, [-1, 2, 2]), maps)
    rows = ((matrix[:, 0, 0], matrix[:, 0, 1]), (matrix[:, 1, 0], matrix[:, 1, 1]))
    return warp(images, matrix=rows, shift=(shift_x, shift_y))


def linear_map(cos: Any, sin: Any, *, shear: Any, width: Any, height: Any) -> tuple[Any, ...]:
    """The four entries, row by row, of rotation times shear times scale; arrays of any library."""
    return cos * width, (cos * shear - sin) * height, sin * width, (sin * shear + cos) * height


def warp(
    images: tf.Tensor,
    *,
    matrix: tuple[tuple[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    shift: tuple[tf.Tensor, tf.Tensor],
) -> tf.Tensor:
    """Maps images affinely about their centre; outside them there is paper (0).

    Args:
      images: `float32[N, S, S, C]`.
      matrix: rows of the 2x2 matrix, `float32[N]` each, that takes (x, y) of the result to (x, y)
        in the image.
      shift: what is added to that, pixels, `float32[N]` each.

    Returns:
      `float32[N, S, S, C]`, bilinear.
    """
    (a0, a1), (b0, b1) = matrix
    shift_x, shift_y = shift
    centre = (images.shape[1] - 1) / 2
    zero = tf.zeros_like(a0)
    transforms = tf.stack(
        [
            *(a0, a1, centre - (a0 + a1) * centre + shift_x),
            *(b0, b1, centre - (b0 + b1) * centre + shift_y),
            *(zero, zero),
        ],
        axis=1,
    )
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
