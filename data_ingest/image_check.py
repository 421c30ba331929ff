"""Which encoded images are sound enough to train on."""

import io
import struct
import warnings
import zlib
from typing import Final

from PIL import Image

MAX_BYTES: Final = 16 * 2**20
MAX_SIDE: Final = 4096
MIN_SIDE: Final = 4

_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC: Final = b"\xff\xd8\xff"


def check_image(data: bytes) -> str | None:
    """Says why an encoded image must be rejected, or None where it is sound.

    Stricter than Pillow: damage that Pillow skips over (a wrong checksum in a PNG) stops
    TensorFlow's decoder in the middle of training.

    Returns:
      One of `empty`, `not PNG or JPEG`, `too large` (over `MAX_BYTES` bytes or `MAX_SIDE` pixels
      a side), `too small` (under `MIN_SIDE` pixels a side), `truncated`, `unreadable`; or None.
    """
    if not data:
        return "empty"
    if len(data) > MAX_BYTES:
        return "too large"
    if data.startswith(_PNG_MAGIC):
        reason = _check_png_chunks(data)
        if reason is not None:
            return reason
    elif not data.startswith(_JPEG_MAGIC):
        return "not PNG or JPEG"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if max(image.size) > MAX_SIDE:
            return "too large"
        if min(image.size) < MIN_SIDE:
            return "too small"
        image.load()
    except Image.DecompressionBombError:
        return "too large"
    except OSError as error:
        return "truncated" if "truncated" in str(error) else "unreadable"
    except (SyntaxError, ValueError, EOFError, struct.error, zlib.error):
        return "unreadable"
    return None


def _check_png_chunks(data: bytes) -> str | None:
    view = memoryview(data)
    position = len(_PNG_MAGIC)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            return "truncated"
        critical = not kind[0] & 0x20
        crc = int.from_bytes(view[end - 4 : end], "big")
        if critical and zlib.crc32(view[position + 4 : end - 4]) != crc:
            return "unreadable"
        if kind == b"IHDR" and length >= 8:
            width, height = struct.unpack_from(">II", data, position + 8)
            if max(width, height) > MAX_SIDE:
                return "too large"
        if kind == b"IEND":
            return None
        position = end
    return "truncated"
