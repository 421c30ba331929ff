"""Turns encoded images into what the network sees, inside the TensorFlow graph.

Training and serving call the same function, so what the model was trained on and what a client
sends are prepared alike. There is no Python in the graph: TF Serving runs it as it is.
"""

from collections.abc import Callable
from typing import Final

import tensorflow as tf

from serving.saved_model.contract import (
    MIN_CONTRAST,
    MIN_RGB_CONTRAST,
    Polarity,
    Preprocessing,
)
from serving.saved_model.decoding import decode_gray, decode_rgb

WINDOW: Final = 0.8
"""Side of the window about the ink, as a share of the image's longer side. Omniglot's drawings are
0.65 wide or high in the median, 0.84 at the 95th percentile."""
WINDOW_MARGIN: Final = 1.06
"""Ink that is larger than the window gets one so many times its own size."""
BOX_MARGIN: Final = 0.03
"""Of the framing 'box': margin on each side of the box around the ink, as a share of its side."""
STRAY: Final = 0.003
"""Share of the ink that may lie outside that box on each side, as specks do."""
LEVELS: Final = 256
"""Of brightness, by which paper and the darkest strokes are told."""
DARKEST: Final = 0.005
"""Share of an image's pixels that are as dark as its strokes."""
FAINT: Final = 0.16
"""Ink up to this share of the strokes' is taken for the paper's grain."""


def decode_images(images: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Decodes PNG or JPEG images to what the network sees.

    In grayscale that is a drawing, ink 1 on paper 0, of `decode_gray`; what is around an image
    that has another aspect is paper. In colour it is the whole image of `decode_rgb`, bilinear;
    what is around it has the colours of its edge. A page with a contrast under `MIN_CONTRAST`
    (`MIN_RGB_CONTRAST`) is refused: all of them would look alike.

    The framing 'ink' takes the window of `WINDOW` times the image's longer side whose centre is
    that of the box around the ink (pixels more than half as dark as the darkest), or a larger one
    that holds all of it. Where a drawing lies then does not matter; how large it is still does.
    The framing 'box' takes the box around all but stray ink, with a margin of `BOX_MARGIN`.

    The contrast 'paper' takes the median brightness for paper. Ink is 0 up to `FAINT` of what
    lies between it and the darkest strokes (the `DARKEST` share of the pixels), and 1 from there.

    Args:
      images: `string[N]`, encoded images.
      preprocessing: size, aspect, colour mode; polarity, framing and contrast of grayscale.

    Returns:
      `float32[N, *preprocessing.shape]` in [0, 1]. In grayscale each pixel is the average over
      the area it covers; with the framing 'ink' over twice that, weighted by a triangle, so that
      small images are smooth.

    Raises:
      tf.errors.InvalidArgumentError: when run, if any image of the batch is refused or broken.
    """
    if preprocessing.color_mode == "rgb":
        return _mapped(
            lambda image: _scene(decode_rgb(image), preprocessing), images, preprocessing
        )

    def ink(image: tf.Tensor) -> tf.Tensor:
        found = _ink(_drawn_on(decode_gray(image), MIN_CONTRAST), preprocessing.polarity)
        return _from_paper(found) if preprocessing.contrast == "paper" else found

    return framed(images, ink, preprocessing)


def framed(
    images: tf.Tensor,
    ink: Callable[[tf.Tensor], tf.Tensor],
    preprocessing: Preprocessing,
) -> tf.Tensor:
    """What `decode_images` makes of the ink of each of N images, `float32[N, H, W, 1]`.

    Args:
      images: any tensor, one image after the other along its first axis.
      ink: from one image to its ink, `float32[H, W, 1]` in [0, 1].
      preprocessing: size, aspect and framing of the results.
    """
    height, width, _ = preprocessing.shape

    def frame(image: tf.Tensor) -> tf.Tensor:
        drawing = ink(image)
        if preprocessing.framing == "ink":
            return _window(drawing, height)
        if preprocessing.framing == "box":
            drawing = _boxed(drawing)
        padded = _padded(drawing, preprocessing.aspect)
        return tf.image.resize(padded, [height, width], method="area")[0]

    return _mapped(frame, images, preprocessing)


def _mapped(
    see: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor, preprocessing: Preprocessing
) -> tf.Tensor:
    shape = preprocessing.shape
    # One image after the other, by many small operations, each of which a GPU would have to launch.
    with tf.device("CPU"):
        seen = tf.map_fn(see, images, fn_output_signature=tf.TensorSpec(shape, tf.float32))
    return tf.ensure_shape(seen, [None, *shape])


def _scene(image: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """All of an image, `float32[H, W, 3]`, in its proportions; its edge goes on around it."""
    image = _drawn_on(image, MIN_RGB_CONTRAST)
    height, width, _ = preprocessing.shape
    found = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = tf.reduce_min(tf.constant([height, width], tf.float32) / found)
    size = tf.clip_by_value(tf.cast(tf.round(found * scale), tf.int32), 1, [height, width])
    small = tf.image.resize(image, size, method="bilinear", antialias=True)
    places = [
        tf.clip_by_value(tf.range(side) - (side - size[axis]) // 2, 0, size[axis] - 1)
        for axis, side in enumerate((height, width))
    ]
    wide = tf.gather(tf.gather(small, places[0], axis=0), places[1], axis=1)
    return tf.clip_by_value(wide, 0.0, 1.0)


def _drawn_on(image: tf.Tensor, least: float) -> tf.Tensor:
    """The image as it is; refused where it is blank in each of its channels."""
    lightest, darkest = (reduce(image, axis=[0, 1]) for reduce in (tf.reduce_max, tf.reduce_min))
    contrast = tf.reduce_max(lightest - darkest)
    reason = tf.strings.join(
        [
            "image refused: nothing is drawn on it (contrast ",
            tf.strings.as_string(contrast, precision=2),
            f", at least {least:.4g} is needed)",
        ]
    )
    is_drawn_on = tf.debugging.Assert(contrast >= least, [reason])
    with tf.control_dependencies([is_drawn_on]):
        return tf.identity(image)


def _ink(gray: tf.Tensor, polarity: Polarity) -> tf.Tensor:
    """Brightness to ink: `float32[H, W, 1]` in [0, 1], ink 1."""
    if polarity == "dark_on_light":
        return 1.0 - gray
    if polarity == "light_on_dark":
        return gray
    border = tf.concat([gray[0], gray[-1], gray[:, 0], gray[:, -1]], axis=0)
    return tf.where(tf.reduce_mean(border) > 0.5, 1.0 - gray, gray)


def _from_paper(ink: tf.Tensor) -> tf.Tensor:
    """Ink that is 0 on the paper and 1 where it is darkest, whatever brightness these have."""
    levels = tf.histogram_fixed_width(ink, [0.0, 1.0], nbins=LEVELS)
    below = tf.cumsum(levels) / tf.reduce_sum(levels)

    def quantile(share: float) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(below < share, tf.float32)) / (LEVELS - 1)

    paper, darkest = quantile(0.5), quantile(1.0 - DARKEST)
    strength = (ink - paper) / tf.maximum(darkest - paper, 1.0 / LEVELS)
    return tf.clip_by_value((strength - FAINT) / (1.0 - FAINT), 0.0, 1.0)


def _padded(ink: tf.Tensor, aspect: float) -> tf.Tensor:
    """`float32[H, W, 1]` to `float32[1, H', W', 1]` with W' = aspect * H', the drawing centred."""
    shape = tf.shape(ink)
    height, width = shape[0], shape[1]
    if aspect == 1.0:
        tall = wide = tf.maximum(height, width)
    else:
        as_floats = tf.cast(shape, tf.float32)
        tall = tf.maximum(height, tf.cast(tf.round(as_floats[1] / aspect), tf.int32))
        wide = tf.maximum(width, tf.cast(tf.round(as_floats[0] * aspect), tf.int32))
    return tf.image.pad_to_bounding_box(
        ink[tf.newaxis], (tall - height) // 2, (wide - width) // 2, tall, wide
    )


def _boxed(ink: tf.Tensor) -> tf.Tensor:
    """The box around the ink but for `STRAY` of it on each side, with a margin: `float32[H, W, 1]`.

    The margin is what lies there, and beyond the image paper.
    """
    cut = ink
    for axis in (0, 1):
        mass = tf.cumsum(tf.reduce_sum(ink[..., 0], axis=1 - axis))
        first, last = (
            tf.reduce_sum(tf.cast(mass < share * mass[-1], tf.int32))
            for share in (STRAY, 1.0 - STRAY)
        )
        length = last + 1 - first
        margin = tf.cast(tf.math.ceil(BOX_MARGIN * tf.cast(length, tf.float32)), tf.int32)
        around = [[margin, margin] if at == axis else [0, 0] for at in range(3)]
        rows = tf.range(first, first + length + 2 * margin)
        cut = tf.gather(tf.pad(cut, around), rows, axis=axis)
    return cut


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
