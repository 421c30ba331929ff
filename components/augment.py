"""Random affine distortions of a batch, in one TensorFlow operation."""

import math
from typing import Final

import tensorflow as tf

ROTATION: Final = math.radians(15.0)
"""Largest rotation at strength 1, radians either way."""
SCALE: Final = 0.2
"""Largest change of width and, independently, of height at strength 1, as a share."""
SHEAR: Final = 0.3
SHIFT: Final = 0.1
"""Largest shift along each axis at strength 1, as a share of the side."""


def augment(images: tf.Tensor, *, turns: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """Turns every image by its quarter turns and distorts it at random.

    Each part is drawn uniformly from its range, scaled by `strength`. The result depends on the
    arguments alone. What comes in from outside the image is paper (0).

    Args:
      images: `float32[N, S, S, C]`.
      turns: `int32[N]`, anticlockwise quarter turns.
      seed: `int32[2]`.
      strength: 0 leaves images as they are, but for the quarter turns.

    Returns:
      `float32[N, S, S, C]`, bilinear.
    """
    side = images.shape[1]
    drawn = tf.random.stateless_uniform([6, tf.shape(images)[0]], seed, -strength, strength)
    angle = ROTATION * drawn[0] + (math.pi / 2) * tf.cast(turns, tf.float32)
    width, height = tf.exp(SCALE * drawn[1]), tf.exp(SCALE * drawn[2])
    shear = SHEAR * drawn[3]
    shift_x, shift_y = SHIFT * side * drawn[4], SHIFT * side * drawn[5]
    cos, sin = tf.cos(angle), tf.sin(angle)
    # Rotation times shear times scale.
    matrix = (
        (cos * width, (cos * shear - sin) * height),
        (sin * width, (sin * shear + cos) * height),
    )
    return warp(images, matrix=matrix, shift=(shift_x, shift_y))


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
