"""A PNG encoder for tests: every colour type, bit depth and interlacing, broken files too."""

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Chunk = tuple[bytes, bytes]

MAGIC = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, INDEXED, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
LUMA = np.array([0.299, 0.587, 0.114])
# First row, first column, row step and column step of Adam7's passes.
_PASSES = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)


def chunk(kind: bytes, body: bytes, *, sound: bool = True) -> bytes:
    """A chunk with its length and checksum, which is wrong unless it is to be `sound`."""
    checksum = zlib.crc32(kind + body) ^ (0 if sound else 1)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def header(width: int, height: int, depth: int, colour_type: int, *, interlaced: bool) -> bytes:
    """The body of an IHDR chunk."""
    return struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)


def chunks(
    samples: Array,
    depth: int,
    colour_type: int,
    *,
    palette: Array | None = None,
    transparency: Sequence[int] | None = None,
    interlaced: bool = False,
) -> list[Chunk]:
    """The chunks of a PNG, for those who want to change some of them.

    Args:
      samples: whole numbers `[H, W, C]`, below 2^depth; indices where the colours are indexed.
      depth: bits of a sample.
      colour_type: one of PNG's five.
      palette: `uint8[N, 3]`.
      transparency: alpha of the palette's first colours, or the transparent gray or RGB.
      interlaced: by Adam7.
    """
    height, width, _ = samples.shape
    made = [(b"IHDR", header(width, height, depth, colour_type, interlaced=interlaced))]
    if palette is not None:
        made.append((b"PLTE", palette.astype(np.uint8).tobytes()))
    if transparency is not None:
        form = "B" if colour_type == INDEXED else "H"
        made.append((b"tRNS", struct.pack(f">{len(transparency)}{form}", *transparency)))
    parts = _passes(samples) if interlaced else iter([samples])
    pixels = b"".join(_rows(part, depth) for part in parts)
    return [*made, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]


def assemble(parts: Sequence[Chunk]) -> bytes:
    """A file of these chunks, their checksums right."""
    return MAGIC + b"".join(chunk(*part) for part in parts)


def looks(
    samples: Array,
    depth: int,
    colour_type: int,
    *,
    palette: Array | None = None,
    transparency: Sequence[int] | None = None,
    interlaced: bool = False,
) -> npt.NDArray[np.float64]:
    """Brightness on white paper as PNG's specification has it, `[H, W]` in 0 to 255.

    Arguments are those of `chunks`. Of 16 bits the upper 8 count.
    """
    del interlaced
    values = np.asarray(samples, np.int64)
    alpha = np.ones(values.shape[:2])
    if colour_type == INDEXED:
        assert palette is not None
        alphas = np.full(1 << depth, 255.0)
        alphas[: len(transparency or ())] = transparency or ()
        alpha = alphas[values[..., 0]] / 255
        colours = palette[values[..., 0]].astype(np.float64)
    else:
        if transparency is not None:
            alpha = 1.0 - (values == np.array(transparency)).all(axis=-1)
        levels = (values >> 8) if depth == 16 else values * (255 // ((1 << depth) - 1))
        if colour_type in (GRAY_ALPHA, RGB_ALPHA):
            alpha, levels = levels[..., -1] / 255, levels[..., :-1]
        colours = levels.astype(np.float64)
    gray = colours @ LUMA if colours.shape[-1] == 3 else colours[..., 0]
    return gray * alpha + 255 * (1 - alpha)


def _passes(samples: Array) -> Iterator[Array]:
    for row, column, down, right in _PASSES:
        part = samples[row::down, column::right]
        if part.size:
            yield part


def _rows(samples: Array, depth: int) -> bytes:
    """Rows of packed samples, each after the number of its filter: none."""
    places = np.arange(depth - 1, -1, -1)
    bits = (np.asarray(samples, np.int64)[..., np.newaxis] >> places) & 1
    packed = np.packbits(bits.reshape(len(samples), -1).astype(np.uint8), axis=1)
    return np.pad(packed, ((0, 0), (1, 0))).tobytes()
