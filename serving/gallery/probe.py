"""The image that tells models apart."""

import struct
import zlib
from typing import Final

import numpy as np

SIDE: Final = 32


def probe_image() -> bytes:
    """A PNG, the same bytes for ever: a ring and a bar, black on white.

    Written out here because an imaging library may compress differently from release to release,
    and a gallery compares vectors of this image over years.
    """
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    radius = np.hypot(x, y)
    ink = ((radius > 7) & (radius < 10)) | ((np.abs(x - 4) < 2) & (np.abs(y) < 13))
    pixels = np.where(ink, 0, 255).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    # Stored, not compressed: what zlib compresses to is not fixed either.
    body = zlib.compress(rows, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", body)
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)
