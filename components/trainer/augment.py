"""Random distortions of a batch: affine ones in one TensorFlow operation, and of colours."""

import math
from typing import Any, Final, Literal

import tensorflow as tf

from serving.saved_model.decoding import LUMA

ROTATION: Final = math.radians(15.0)
"""Largest rotation at strength 1, radians either way."""
SCALE: Final = 0.2
"""Largest change of width and, independently, of height at strength 1, as a share."""
SHEAR: Final = 0.3
SHIFT: Final = 0.1
"""Largest shift along each axis at strength 1, as a share of the side, of images seen whole."""
FRAMED_SHIFT: Final = 0.05
"""And of those that are framed by their ink."""
CROP: Final = 0.22
"""Largest part of a photograph's sides that a crop leaves out at strength 1."""
PHOTO_ROTATION: Final = math.radians(10.0)
PHOTO_STRETCH: Final = 0.08
"""Largest change of a photograph's aspect at strength 1, as a share."""
PHOTO_SHIFT: Final = 0.03
"""Largest shift of a photograph besides that of its crop at strength 1, as a share of the side."""
SATURATION: Final = (-0.7, 0.3)
"""How much is added to the saturation of a photograph, which is 1, at strength 1."""
CONTRAST: Final = 0.3
BRIGHTNESS: Final = 0.1
ERASED: Final = (0.1, 0.4)
"""Sides of the rectangle that is erased of every second photograph, as shares of its side."""

Matrix = tuple[tuple[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


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
      images: `float32[N, H, W, C]`.
      maps: `float32[N, 2, 2]`: where (x, y) of the result, about the centre, comes from in the
        distorted image.
      seed: `int32[2]`.
      strength: 0 leaves images as they are, but for `maps`.
      largest_shift: at strength 1, as a share of the side.

    Returns:
      `float32[N, H, W, C]`, bilinear.
    """
    tall, wide = images.shape[1:3]
    drawn = tf.random.stateless_uniform([6, tf.shape(images)[0]], seed, -strength, strength)
    angle = ROTATION * drawn[0]
    width, height = tf.exp(SCALE * drawn[1]), tf.exp(SCALE * drawn[2])
    shear = SHEAR * drawn[3]
    shift_x, shift_y = largest_shift * wide * drawn[4], largest_shift * tall * drawn[5]
    cos, sin = tf.cos(angle), tf.sin(angle)
    own = linear_map(cos, sin, shear=shear, width=width, height=height)
    return warp(images, matrix=_after(own, maps), shift=(shift_x, shift_y))


def augment_photos(
    images: tf.Tensor,
    *,
    maps: tf.Tensor,
    hues: tf.Tensor,
    seed: tf.Tensor,
    strength: float,
    mirroring: bool,
) -> tf.Tensor:
    """Distorts every photograph at random, and then as all of its class.

    Crop, rotation, stretch and shift are one bilinear operation, outside of whose images these go
    on mirrored; then come the hue of the class, saturation, contrast and brightness, and a
    rectangle is erased. Each part but the hue is drawn uniformly from its range, scaled by
    `strength`. The result depends on the arguments alone, which no layer of `keras.layers` would
    let it: a training that goes on from a checkpoint sees what it would have seen.

    Args:
      images: `float32[N, H, W, 3]` in [0, 1].
      maps: as of `augment`.
      hues: `float32[N]`: radians by which colours are turned about the gray axis of RGB.
      seed: `int32[2]`.
      strength: 0 leaves images as they are, but for `maps`, `hues` and mirroring.
      mirroring: whether every second image is mirrored.

    Returns:
      `float32[N, H, W, 3]` in [0, 1].
    """
    tall, wide = images.shape[1:3]
    drawn = tf.random.stateless_uniform([14, tf.shape(images)[0]], seed)
    signed = (2.0 * drawn - 1.0) * strength
    scale = 1.0 - CROP * strength * drawn[0]
    angle, stretch = PHOTO_ROTATION * signed[1], tf.exp(PHOTO_STRETCH * signed[2])
    mirrored = tf.where((drawn[3] < 0.5) & mirroring, -1.0, 1.0)
    shift_x, shift_y = (
        ((drawn[at] - 0.5) * (1.0 - scale) + PHOTO_SHIFT * signed[at]) * side
        for at, side in ((4, wide), (5, tall))
    )
    width, height = scale * stretch * mirrored, scale
    own = linear_map(tf.cos(angle), tf.sin(angle), shear=0.0, width=width, height=height)
    warped = warp(images, matrix=_after(own, maps), shift=(shift_x, shift_y), outside="REFLECT")

    def each(values: tf.Tensor) -> tf.Tensor:
        return values[:, tf.newaxis, tf.newaxis, tf.newaxis]

    warped = _turned(warped, hues)
    gray = tf.tensordot(warped, LUMA, axes=1)[..., tf.newaxis]
    low, high = SATURATION
    vivid = gray + (warped - gray) * each(1.0 + strength * (low + (high - low) * drawn[6]))
    mean = tf.reduce_mean(vivid, axis=[1, 2, 3], keepdims=True)
    lit = (vivid - mean) * each(1.0 + CONTRAST * signed[7]) + mean + each(BRIGHTNESS * signed[8])
    return tf.clip_by_value(_erased(lit, drawn[9:], strength), 0.0, 1.0)


def _turned(images: tf.Tensor, hues: tf.Tensor) -> tf.Tensor:
    """RGB images with their colours turned about the gray axis (Rodrigues' formula)."""
    cos, sin = (part(hues)[:, tf.newaxis, tf.newaxis] for part in (tf.cos, tf.sin))
    across = tf.constant([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], tf.float32) / math.sqrt(3)
    matrix = cos * tf.eye(3) + sin * across + (1 - cos) / 3
    return tf.einsum("nhwc,ndc->nhwd", images, matrix)


def _after(own: tuple[tf.Tensor, ...], maps: tf.Tensor) -> Matrix:
    """The rows of each image's own map times that of its class."""
    matrix = tf.matmul(tf.reshape(tf.stack(own, axis=-1), [-1, 2, 2]), maps)
    return (matrix[:, 0, 0], matrix[:, 0, 1]), (matrix[:, 1, 0], matrix[:, 1, 1])


def _erased(images: tf.Tensor, drawn: tf.Tensor, strength: float) -> tf.Tensor:
    """Every second image with its mean colour in a rectangle; `drawn` is `float32[5, N]`."""
    least, most = ERASED
    inside = drawn[0][:, tf.newaxis, tf.newaxis] < 0.5 * min(strength, 1.0)
    for at, axis in ((1, 1), (3, 2)):
        side = images.shape[axis]
        shape = [1, -1, 1] if axis == 1 else [1, 1, -1]
        place = tf.reshape(tf.range(side, dtype=tf.float32), shape)
        half = 0.5 * side * (least + (most - least) * drawn[at])[:, tf.newaxis, tf.newaxis]
        middle = side * drawn[at + 1][:, tf.newaxis, tf.newaxis]
        inside &= tf.abs(place - middle) < half
    mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
    return tf.where(inside[..., tf.newaxis], mean, images)


def linear_map(cos: Any, sin: Any, *, shear: Any, width: Any, height: Any) -> tuple[Any, ...]:
    """The four entries, row by row, of rotation times shear times scale; arrays of any library."""
    return cos * width, (cos * shear - sin) * height, sin * width, (sin * shear + cos) * height


def warp(
    images: tf.Tensor,
    *,
    matrix: Matrix,
    shift: tuple[tf.Tensor, tf.Tensor],
    outside: Literal["CONSTANT", "REFLECT"] = "CONSTANT",
) -> tf.Tensor:
    """Maps images affinely about their centre.

    Args:
      images: `float32[N, H, W, C]`.
      matrix: rows of the 2x2 matrix, `float32[N]` each, that takes (x, y) of the result to (x, y)
        in the image.
      shift: what is added to that, pixels, `float32[N]` each.
      outside: 'CONSTANT', paper (0), or 'REFLECT': images go on mirrored.

    Returns:
      `float32[N, H, W, C]`, bilinear.
    """
    (a0, a1), (b0, b1) = matrix
    shift_x, shift_y = shift
    y, x = ((side - 1) / 2 for side in images.shape[1:3])
    zero = tf.zeros_like(a0)
    transforms = tf.stack(
        [
            *(a0, a1, x - (a0 + a1 * (y / x)) * x + shift_x),
            *(b0, b1, y - (b0 * (x / y) + b1) * y + shift_y),
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
        fill_mode=outside,
    )
