"""What a server is sent that is no drawing: each must get a clean error and harm nobody else."""

import struct
import zlib
from collections.abc import Iterator

HUGE_SIDE = 11_000


def hostile_images(good: bytes) -> dict[str, bytes]:
    """Broken and absurd uploads by a name for people.

    Args:
      good: an encoded image that the model accepts; the truncated ones are made of it.
    """
    huge = huge_png(HUGE_SIDE)
    return {
        "an empty upload": b"",
        "a text file": b"this is not an image\n" * 40,
        "a PNG signature and nothing more": b"\x89PNG\r\n\x1a\n",
        "an image cut off in its header": good[:20],
        "an image cut off in the middle": good[: len(good) // 2],
        f"a {HUGE_SIDE}x{HUGE_SIDE} PNG": huge,
        f"a {HUGE_SIDE}x{HUGE_SIDE} PNG cut off": huge[:200],
    }


def huge_png(side: int) -> bytes:
    """A valid white 1-bit PNG, `side` x `side` pixels: a few kB that decode to `side`² bytes."""
    row = b"\x00" + b"\xff" * -(-side // 8)
    compressor = zlib.compressobj(9)
    body = b"".join([*(compressor.compress(row) for _ in range(side)), compressor.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [*_chunk(b"IHDR", header), *_chunk(b"IDAT", body), *_chunk(b"IEND", b"")]
    )


def _chunk(name: bytes, data: bytes) -> Iterator[bytes]:
    yield struct.pack(">I", len(data))
    yield name
    yield data
    yield struct.pack(">I", zlib.crc32(name + data))
