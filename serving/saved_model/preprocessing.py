"""Turns encoded images into what the network sees, inside the TensorFlow graph.

Training and serving call the same function, so what the model was trained on and what a client
sends are prepared alike. There is no Python in the graph: TF Serving runs it as it is.
"""

from collections.abc import Callable
from typing import Final

import tensorflow as tf

from serving.saved_model.contract import MIN_CONTRAST, Polarity, Preprocessing
from serving.saved_model.decoding import decode_gray

WINDOW: Final = 0.8
"""Side of the window about the ink, as a share of the image's longer side. Omniglot's drawings are
0.65 wide or high in the median, 0.84 at the 95th percentile."""
WINDOW_MARGIN: Final = 1.06
"""Ink that is larger than the window gets one so many times its own size."""


def decode_images(images: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Decodes PNG or JPEG images to square drawings, ink 1 on paper 0.

    They are decoded as `decode_gray` has it. A page with a contrast under `MIN_CONTRAST` is
    refused: all of them would look alike. An image that is not square is padded with paper, so
    that shapes keep their proportions.

    The framing 'ink' takes the window of `WINDOW` times the image's longer side whose centre is
    that of the box around the ink (pixels more than half as dark as the darkest), or a larger one
    that holds all of it. Where a drawing lies then does not matter; how large it is still does.

    Args:
      images: `string[N]`, encoded images.
      preprocessing: the result's side, which brightness is ink, and the framing.

    Returns:
      `float32[N, size, size, 1]` in [0, 1], each pixel the average over the area it covers; with
      the framing 'ink' over twice that, weighted by a triangle, so that small images are smooth.

    Raises:
      tf.errors.InvalidArgumentError: when run, if any image of the batch is refused or broken.
    """
    return framed(
        images,
        lambda image: _ink(_drawn_on(decode_gray(image)), preprocessing.polarity),
        preprocessing,
    )


def framed(
    images: tf.Tensor,
    ink: Callable[[tf.Tensor], tf.Tensor],
    preprocessing: Preprocessing,
) -> tf.Tensor:
    """What `decode_images` makes of the ink of each of N images, `float32[N, size, size, 1]`.

    Args:
      images: any tensor, one image after the other along its first axis.
      ink: from one image to its ink, `float32[H, W, 1]` in [0, 1].
      preprocessing: size and framing of the results.
    """
    size = preprocessing.size

    def frame(image: tf.Tensor) -> tf.Tensor:
        if preprocessing.framing == "ink":
            return _window(ink(image), size)
        return tf.image.resize(_padded_to_square(ink(image)), [size, size], method="area")[0]

    # One image after the other, by many small operations, each of which a GPU would have to launch.
    with tf.device("CPU"):
        drawings = tf.map_fn(
            frame, images, fn_output_signature=tf.TensorSpec([size, size, 1], tf.float32)
        )
    return tf.ensure_shape(drawings, [None, size, size, 1])


def _drawn_on(gray: tf.Tensor) -> tf.Tensor:
    """The image as it is; refused where it is blank."""
    contrast = tf.reduce_max(gray) - tf.reduce_min(gray)
    reason = tf.strings.join(
        [
            "image refused: nothing is drawn on it (contrast ",
            tf.strings.as_string(contrast, precision=2),
            f", at least {MIN_CONTRAST} is needed)",
        ]
    )
    is_drawn_on = tf.debugging.Assert(contrast >= MIN_CONTRAST, [reason])
    with tf.control_dependencies([is_drawn_on]):
        return tf.identity(gray)


def _ink(gray: tf.Tensor, polarity: Polarity) -> tf.Tensor:
    """Brightness to ink: `float32[H, W, 1]` in [0, 1], ink 1."""
    if polarity == "dark_on_light":
        return 1.0 - gray
    if polarity == "light_on_dark":
        return gray
    border = tf.concat([gray[0], gray[-1], gray[:, 0], gray[:, -1]], axis=0)
    return tf.where(tf.reduce_mean(border) > 0.5, 1.0 - gray, gray)


def _padded_to_square(ink: tf.Tensor) -> tf.Tensor:
    """`float32[H, W, 1]` to `float32[1, S, S, 1]` with S = max(H, W), the drawing centred."""
    shape = tf.shape(ink)
    height, width = shape[0], shape[1]
    side = tf.maximum(height, width)
    return tf.image.pad_to_bounding_box(
        ink[tf.newaxis], (side - height) // 2, (side - width) // 2, side, side
    )


def _window(ink: tf.Tensor, size: int) -> tf.Tensor:
    """The window about the ink: `float32[H, W, 1]` to `float32[size, size, 1]`."""
    dark = ink[..., 0] > 0.5 * tf.reduce_max(ink)
    (top, bottom), (left, right) = _extent(dark, axis=1), _extent(dark, axis=0)
    longer = tf.cast(tf.reduce_max(tf.shape(ink)), tf.float32)
    side = tf.maximum(WINDOW * longer, WINDOW_MARGIN * tf.maximum(bottom - top, right - left))
    scale = size / side
    # Of a pixel that lies across the edge of an image the operation averages only the part inside.
    edge = 2 * tf.cast(tf.math.ceil(side / size), tf.int32)
    padded = tf.pad(ink, [[edge, edge], [edge, edge], [0, 0]])
    centre = tf.cast(edge, tf.float32) + tf.stack([top + bottom, left + right]) / 2.0
    return tf.raw_ops.ScaleAndTranslate(
        images=padded[tf.newaxis],
        size=[size, size],
        scale=tf.stack([scale, scale]),
        translation=size / 2 - centre * scale,
        kernel_type="triangle",
        antialias=True,
    )[0]


def _extent(dark: tf.Tensor, *, axis: int) -> tuple[tf.Tensor, tf.Tensor]:
    """First row (axis 1) or column (axis 0) with a true pixel, and the one after the last.

    Without any: all of them.
    """
    used = tf.cast(tf.reduce_any(dark, axis=axis), tf.int32)
    first = tf.argmax(used, output_type=tf.int32)
    last = tf.shape(used)[0] - tf.argmax(tf.reverse(used, [0]), output_type=tf.int32)
    return tf.cast(first, tf.float32), tf.cast(last, tf.float32)
