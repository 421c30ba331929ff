"""Turns encoded images into what the network sees, inside the TensorFlow graph.

Training and serving call the same function, so what the model was trained on and what a client
sends are prepared alike. There is no Python in the graph: TF Serving runs it as it is.
"""

from collections.abc import Callable
from typing import Final

import tensorflow as tf

from serving.saved_model.contract import MAX_BYTES, MAX_SIDE, Polarity, Preprocessing

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
PNG_HEADER_BYTES: Final = 26
"""Signature, chunk length and name, width, height, bit depth and colour type of a PNG."""
JPEG_MAGIC: Final = b"\xff\xd8\xff"
WINDOW: Final = 0.8
"""Side of the window about the ink, as a share of the image's longer side. Omniglot's drawings are
0.65 wide or high in the median, 0.84 at the 95th percentile."""
WINDOW_MARGIN: Final = 1.06
"""Ink that is larger than the window gets one so many times its own size."""
LUMA: Final = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue (ITU-R BT.601)."""


def decode_images(images: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Decodes PNG or JPEG images to square drawings, ink 1 on paper 0.

    The header is read first: what is neither PNG nor JPEG, larger than `MAX_BYTES`, or more than
    `MAX_SIDE` pixels a side is refused without decoding, which takes well under a millisecond
    however large the image claims to be. Transparent pixels become paper-white. An image that is
    not square is padded with paper, so that shapes keep their proportions.

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
        images, lambda image: _ink(_decode_gray(image), preprocessing.polarity), preprocessing
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


def _decode_gray(image: tf.Tensor) -> tf.Tensor:
    """Decodes one image: `string[]` to `float32[H, W, 1]` in [0, 1]."""
    size = tf.strings.length(image)
    is_png = tf.strings.substr(image, 0, len(PNG_MAGIC)) == PNG_MAGIC
    is_jpeg = tf.strings.substr(image, 0, len(JPEG_MAGIC)) == JPEG_MAGIC
    checks = [
        tf.debugging.Assert(
            size <= MAX_BYTES, [f"image refused: more than {MAX_BYTES} bytes:", size]
        ),
        tf.debugging.Assert(is_png | is_jpeg, ["image refused: neither PNG nor JPEG"]),
    ]
    with tf.control_dependencies(checks):
        return tf.cond(is_png, lambda: _decode_png(image, size), lambda: _decode_jpeg(image))


def _decode_png(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    complete = tf.debugging.Assert(size > PNG_HEADER_BYTES, ["image refused: truncated PNG header"])
    with tf.control_dependencies([complete]):
        header = tf.cast(
            tf.io.decode_raw(tf.strings.substr(image, 0, PNG_HEADER_BYTES), tf.uint8),
            tf.int64,
        )
    powers = tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64)
    width = tf.reduce_sum(header[16:20] * powers)
    height = tf.reduce_sum(header[20:24] * powers)
    colour_type = header[25]

    def opaque() -> tf.Tensor:
        return tf.cast(tf.io.decode_png(image, channels=1), tf.float32) / 255.0

    def transparent() -> tf.Tensor:
        pixels = tf.cast(tf.io.decode_png(image, channels=4), tf.float32) / 255.0
        gray = tf.tensordot(pixels[..., :3], LUMA, axes=1)[..., tf.newaxis]
        return gray * pixels[..., 3:] + (1.0 - pixels[..., 3:])

    with tf.control_dependencies([_side_check(height, width)]):
        # Colour types 0 and 2 (gray, RGB) carry no alpha worth a four-channel decode; 3 (palette),
        # 4 and 6 may.
        return tf.cond((colour_type == 0) | (colour_type == 2), opaque, transparent)


def _decode_jpeg(image: tf.Tensor) -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(image, output_type=tf.int64)
    with tf.control_dependencies([_side_check(shape[0], shape[1])]):
        # As Pillow decodes; the default is up to 17 levels of 255 off where the quality is high.
        gray = tf.io.decode_jpeg(image, channels=1, dct_method="INTEGER_ACCURATE")
        return tf.cast(gray, tf.float32) / 255.0


def _side_check(height: tf.Tensor, width: tf.Tensor) -> tf.Operation:
    return tf.debugging.Assert(
        (tf.minimum(height, width) >= 1) & (tf.maximum(height, width) <= MAX_SIDE),
        [f"image refused: sides must be 1 to {MAX_SIDE} pixels, not", height, width],
    )


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
