"""Images to send, good and bad."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.pair_records import drawing, png


def drawings(count: int, *, writer: int = 1) -> np.ndarray:
    """PNG images, each of another character: `bytes[count]`."""
    images = np.empty(count, object)
    for at in range(count):
        images[at] = png(drawing(at, writer))
    return images


def encoded(mode: str, file_format: str, *, size: tuple[int, int] = (20, 20)) -> bytes:
    """A drawing in another kind of file."""
    target = io.BytesIO()
    page = Image.fromarray(drawing(5, 1)).resize(size)
    page.convert(mode).save(target, file_format)
    return target.getvalue()


def claimed(width: int, height: int) -> bytes:
    """A small PNG whose header says that it is large; its data are zeros, well compressed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(bytes(1_000_000))),
            chunk(b"IEND", b""),
        ]
    )


BAD = {
    "empty": b"",
    "text": b"not an image",
    "gif": encoded("L", "gif"),
    "png_magic_alone": b"\x89PNG\r\n\x1a\n",
    "png_header_alone": encoded("L", "png")[:33],
    "png_cut": encoded("L", "png")[:-30],
    "jpeg_magic_alone": b"\xff\xd8\xff",
    "jpeg_cut": encoded("L", "jpeg")[:60],
    "bomb": claimed(30_000, 30_000),
    "too_wide": claimed(4097, 1),
    "no_pixels": claimed(0, 0),
    "one_pixel": encoded("L", "png", size=(1, 1)),
    "largest_claim": claimed(2**31 - 1, 2**31 - 1),
}
