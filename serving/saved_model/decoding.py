"""Decodes PNG and JPEG inside the TensorFlow graph, to what every viewer shows of them.

TensorFlow's decoders alone do not: they call an indexed PNG of up to 4 bits transparent, weigh
colours by a PNG's gamma, pass over tRNS, and turn nothing upright.
"""

from typing import Final

import tensorflow as tf

from data_ingest.sources.images import MAX_BYTES
from data_ingest.sources.kinds import MAX_SIDE

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
PNG_HEADER_BYTES: Final = 33
"""Magic and IHDR of a PNG."""
PNG_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
"""The last chunk of a PNG."""
MAX_CHUNKS: Final = 4096
"""Of a PNG. They are walked one by one; libpng writes 2,048 for 16 MiB of pixels."""
MAX_PALETTE: Final = 3 * 256
"""Longest chunk of a PNG that its picture needs beside its pixels, bytes."""
JPEG_MAGIC: Final = b"\xff\xd8\xff"
EXIF: Final = b"Exif\0\0"
EXIF_BYTES: Final = 2**16
"""Of a JPEG's first bytes, EXIF is looked for there."""
MAX_SEGMENTS: Final = 64
"""A JPEG's segments before its EXIF."""
LUMA: Final = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue (ITU-R BT.601)."""
_GRAY, _RGB, _GRAY_ALPHA = 0, 2, 4
"""Colour types of PNG; 3 is indexed, 6 RGB with alpha."""
_PLTE, _IDAT, _IEND, _TRNS, _EXIF = (
    int.from_bytes(name, "big") for name in (b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf")
)
_ANCILLARY: Final = 1 << 29
"""The bit that is set in the names of chunks which decoders need not understand."""
_ORIENTATION, _SHORT = 0x0112, 3
"""Tag and type of the entry in EXIF that tells how an image is to be turned."""


# Functions of their own, so that they are traced once, however many signatures call them.
@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def decode_gray(image: tf.Tensor) -> tf.Tensor:
    """Decodes one image to its brightness, upright and on white paper.

    The header is read first: what is neither PNG nor JPEG, larger than `MAX_BYTES`, or more than
    `MAX_SIDE` pixels a side is refused without decoding, which takes well under a millisecond
    however large the image claims to be. Of 16 bits the upper 8 are used. What EXIF says about
    the orientation is followed; EXIF that makes no sense is passed over.

    Args:
      image: `string[]`, an encoded image.

    Returns:
      `float32[H, W, 1]`, black 0 to white 1.

    Raises:
      tf.errors.InvalidArgumentError: when run, if the image is refused or broken.
    """
    with tf.device("CPU"):
        return _decode(image, 1)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def decode_rgb(image: tf.Tensor) -> tf.Tensor:
    """Decodes one image to its colours, upright and on white paper: as `decode_gray`.

    Returns:
      `float32[H, W, 3]` in [0, 1]: red, green and blue, all the same where it is gray.
    """
    with tf.device("CPU"):
        return _decode(image, 3)


def _decode(image: tf.Tensor, channels: int) -> tf.Tensor:
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
        return tf.cond(
            is_png,
            lambda: _decode_png(image, size, channels),
            lambda: _decode_jpeg(image, channels),
        )


def _decode_png(image: tf.Tensor, size: tf.Tensor, channels: int) -> tf.Tensor:
    complete = tf.debugging.Assert(
        size >= PNG_HEADER_BYTES, ["image refused: truncated PNG header"]
    )
    with tf.control_dependencies([complete]):
        width, height, kind = _numbers(tf.strings.substr(image, 16, 12), 3)
    colour_type = tf.bitwise.right_shift(kind, 16) & 0xFF
    length, name = _chunk(image, tf.minimum(PNG_HEADER_BYTES, size - 8))
    is_plain = (
        ((colour_type == _GRAY) | (colour_type == _RGB))
        & (name == _IDAT)
        & (length == size - PNG_HEADER_BYTES - 12 - len(PNG_END))
        & (tf.strings.substr(image, size - len(PNG_END), len(PNG_END)) == PNG_END)
    )
    with tf.control_dependencies([_side_check(height, width)]):
        return tf.cond(
            is_plain,
            lambda: _pixels(tf.io.decode_png(image, channels=channels)),
            lambda: _decode_rich_png(image, size, colour_type, channels),
        )


def _decode_rich_png(
    image: tf.Tensor, size: tf.Tensor, colour_type: tf.Tensor, channels: int
) -> tf.Tensor:
    """Of a PNG with colours to look up, transparency, or chunks beside those of its picture."""
    picture, has_transparency, exif = _picture(image, size)

    def on_white() -> tf.Tensor:
        pixels = _pixels(tf.io.decode_png(picture, channels=4))
        seen = pixels[..., :3]
        if channels == 1:
            seen = tf.tensordot(seen, LUMA, axes=1)[..., tf.newaxis]
        return seen * pixels[..., 3:] + (1.0 - pixels[..., 3:])

    decoded = tf.cond(
        # Where a PNG has no transparency TensorFlow's alpha is 2^depth - 1, whatever the depth.
        has_transparency | (colour_type >= _GRAY_ALPHA),
        on_white,
        lambda: _pixels(tf.io.decode_png(picture, channels=channels)),
    )
    return _upright(decoded, exif)


def _picture(image: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A PNG without what is beside its picture.

    The decoder would reckon brightness by gAMA, sRGB and iCCP, set aside the gigabytes that a
    chunk claims to have, and unpack compressed texts, however long.

    Returns:
      the PNG, `string[]`; whether it has tRNS, `bool[]`; its EXIF, `string[]`, empty where it has
      none.
    """

    def going(at: tf.Tensor, name: tf.Tensor, sound: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return sound & (name != _IEND) & (at + 12 <= size)

    def step(
        at: tf.Tensor,
        name: tf.Tensor,
        sound: tf.Tensor,
        header: tf.Tensor,
        pixels: tf.Tensor,
        transparent: tf.Tensor,
        exif: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        length, name = _chunk(image, at)
        whole = (length >= 0) & (length <= size - at - 12)
        after = tf.where(whole, at + 12 + length, size)
        is_pixels, is_end, is_clear = name == _IDAT, name == _IEND, name == _TRNS
        is_other = ~is_pixels & ~is_end & (tf.bitwise.bitwise_and(name, _ANCILLARY) == 0)
        before = pixels[1] == 0
        kept = before & (is_other | is_clear)
        header = tf.cond(
            kept & whole & (length <= MAX_PALETTE),
            lambda: tf.strings.join([header, tf.strings.substr(image, at, after - at)]),
            lambda: header,
        )
        sound &= ~kept | ((length <= MAX_PALETTE) & (tf.strings.length(header) < 4 * MAX_PALETTE))
        # A palette behind the pixels is of no use and does no harm.
        stray = (is_other & (name != _PLTE)) | (is_pixels & (at != pixels[1]))
        sound &= before | ~stray
        pixels = tf.where(is_pixels, [tf.where(before, at, pixels[0]), after], pixels)
        exif = tf.where(name == _EXIF, [at + 8, after - 4], exif)
        return after, tf.where(whole, name, 0), sound, header, pixels, transparent | is_clear, exif

    at, name, sound, header, pixels, transparent, exif = tf.while_loop(
        going,
        step,
        (
            tf.constant(len(PNG_MAGIC)),
            tf.constant(0),
            tf.constant(True),
            tf.constant(PNG_MAGIC),
            tf.constant([0, 0]),
            tf.constant(False),
            tf.constant([0, 0]),
        ),
        maximum_iterations=MAX_CHUNKS,
    )
    checks = [
        tf.debugging.Assert(sound, ["image refused: PNG with chunks out of place"]),
        tf.debugging.Assert(
            ~going(at, name, sound), [f"image refused: PNG of more than {MAX_CHUNKS} chunks"]
        ),
        tf.debugging.Assert((name == _IEND) | ~sound, ["image refused: truncated PNG"]),
    ]
    with tf.control_dependencies(checks):
        body = tf.strings.substr(image, pixels[0], pixels[1] - pixels[0])
        picture = tf.strings.join([header, body, PNG_END])
    return picture, transparent, tf.strings.substr(image, exif[0], exif[1] - exif[0])


def _chunk(image: tf.Tensor, at: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Length and name of a PNG's chunk, each `int32[]`."""
    return _numbers(tf.strings.substr(image, at, 8), 2)


def _numbers(text: tf.Tensor, count: int) -> tuple[tf.Tensor, ...]:
    """The big-endian numbers, each `int32[]`, in so many times four bytes."""
    return tuple(tf.unstack(tf.io.decode_raw(text, tf.int32, little_endian=False), count))


def _pixels(levels: tf.Tensor) -> tf.Tensor:
    return tf.cast(levels, tf.float32) / 255.0


def _decode_jpeg(image: tf.Tensor, channels: int) -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(image)
    checks = [
        _side_check(shape[0], shape[1]),
        tf.debugging.Assert(shape[2] != 4, ["image refused: CMYK JPEG: convert it to RGB"]),
    ]
    with tf.control_dependencies(checks):
        # As Pillow decodes; the default is up to 17 levels of 255 off where the quality is high.
        levels = tf.io.decode_jpeg(image, channels=channels, dct_method="INTEGER_ACCURATE")
    decoded = _pixels(levels)
    # One quick look, so that those without EXIF are not walked through.
    start = tf.strings.substr(image, 0, EXIF_BYTES)
    has_exif = tf.strings.regex_full_match(start, r"(?s)\C*Exif\x00\x00\C*")
    return tf.cond(has_exif, lambda: _upright(decoded, _jpeg_exif(start)), lambda: decoded)


def _jpeg_exif(start: tf.Tensor) -> tf.Tensor:
    """A JPEG's EXIF, `string[]`, empty where it has none."""

    def is_exif(at: tf.Tensor) -> tf.Tensor:
        return (_slice(start, at, 2) == b"\xff\xe1") & (_slice(start, at + 4, 6) == EXIF)

    def going(at: tf.Tensor) -> tf.Tensor:
        marker = _slice(start, at, 2)
        # 0xFFDA: the pixels follow.
        is_marker = tf.strings.substr(marker, 0, 1) == b"\xff"
        return is_marker & (marker != b"\xff\xda") & ~is_exif(at)

    def step(at: tf.Tensor) -> tuple[tf.Tensor]:
        fill = _slice(start, at, 2) == b"\xff\xff"
        return (at + tf.where(fill, tf.constant(1, tf.int64), 2 + _length(at)),)

    def _length(at: tf.Tensor) -> tf.Tensor:
        return _number(_slice(start, at + 2, 2), 2)

    (at,) = tf.while_loop(going, step, (tf.constant(2, tf.int64),), maximum_iterations=MAX_SEGMENTS)
    found = _slice(start, at + 4 + len(EXIF), tf.maximum(_length(at) - 2 - len(EXIF), 0))
    return tf.where(is_exif(at), found, b"")


def _upright(image: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
    """The image turned as its EXIF says: `float32[H, W, C]` to that or `float32[W, H, C]`."""

    def turned() -> tf.Tensor:
        orientation = _orientation(exif)

        def among(*orientations: int) -> tf.Tensor:
            return tf.reduce_any(orientation == tf.constant(orientations, tf.int64))

        def reversed_if(condition: tf.Tensor, axis: int, image: tf.Tensor) -> tf.Tensor:
            return tf.cond(condition, lambda: tf.reverse(image, [axis]), lambda: image)

        swapped = tf.cond(
            among(5, 6, 7, 8), lambda: tf.transpose(image, [1, 0, 2]), lambda: tf.identity(image)
        )
        mirrored = reversed_if(among(2, 3, 6, 7), 1, swapped)
        return reversed_if(among(3, 4, 7, 8), 0, mirrored)

    return tf.cond(tf.strings.length(exif) > 0, turned, lambda: image)


def _orientation(exif: tf.Tensor) -> tf.Tensor:
    """What EXIF (a TIFF without pixels) says: `int64[]`, or 0."""
    values = tf.cast(tf.io.decode_raw(exif, tf.uint8), tf.int64)
    # As if nought followed, so that what lies beyond the end can be read.
    values = tf.concat([values, tf.zeros([8], tf.int64)], axis=0)
    order = tf.strings.substr(exif, 0, 2)
    powers = tf.constant([1, 1 << 8, 1 << 16, 1 << 24], tf.int64)

    def number(part: tf.Tensor) -> tf.Tensor:
        """Of the last axis, whose length is known: 2 or 4."""
        used = powers[: part.shape[-1]]
        return tf.reduce_sum(part * tf.where(order == b"MM", tf.reverse(used, [0]), used), axis=-1)

    last = tf.size(values, tf.int64) - 2
    directory = tf.minimum(number(tf.ensure_shape(values[4:8], [4])), last)
    count = number(tf.ensure_shape(values[directory : directory + 2], [2]))
    count = tf.minimum(count, (last - directory) // 12)
    entries = tf.reshape(values[directory + 2 : directory + 2 + 12 * count], [-1, 12])
    said = (number(entries[:, :2]) == _ORIENTATION) & (number(entries[:, 2:4]) == _SHORT)
    orientation = tf.reduce_max(tf.where(said, number(entries[:, 8:10]), 0), axis=0)
    known = (order == b"II") | (order == b"MM")
    return tf.where(known, orientation, 0)


def _slice(text: tf.Tensor, start: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """`length` bytes from `start`, or as many as there are."""
    end = tf.cast(tf.strings.length(text), tf.int64)
    return tf.strings.substr(text, tf.minimum(end, start), tf.minimum(end, length))


def _number(text: tf.Tensor, size: int) -> tf.Tensor:
    """Big-endian, of `size` bytes or what there is of them, as if noughts followed: `int64[]`."""
    padded = tf.strings.substr(tf.strings.join([text, b"\0" * size]), 0, size)
    values = tf.cast(tf.io.decode_raw(padded, tf.uint8), tf.int64)
    return tf.reduce_sum(values * [1 << 8 * place for place in reversed(range(size))])


def _side_check(height: tf.Tensor, width: tf.Tensor) -> tf.Operation:
    return tf.debugging.Assert(
        (tf.minimum(height, width) >= 1) & (tf.maximum(height, width) <= MAX_SIDE),
        [f"image refused: sides must be 1 to {MAX_SIDE} pixels, not", height, width],
    )
