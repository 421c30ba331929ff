"""Judges encoded images, and brings them to the form that the network decodes as they look."""

import hashlib
import io
import mmap
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_ingest.sources.kinds import ANY_KIND, Form

MAX_BYTES: Final = 16 * 2**20
"""Largest encoded image that is stored or sent, bytes; for an exported model, too."""
MAX_FILE_BYTES: Final = 4 * MAX_BYTES
"""Largest file that is looked at."""
MAX_PIXELS: Final = 2**26
"""Largest picture that is decoded to be reduced, 8192 by 8192: the memory that it takes."""
MIN_SIDE: Final = 4
"""Smallest height or width, pixels."""
NOT_AN_IMAGE: Final = "not an image"
NEEDS_HEIC: Final = "needs the heic extra"

_FORMATS: Final[tuple[str, ...]] = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    "PPM",
    "AVIF",
    "HEIF",
)
_HEIC_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"})
_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC: Final = b"\xff\xd8\xff"
_PNG_CHUNK: Final = struct.Struct(">I4s")
_PNG_HEADER: Final = struct.Struct(">IIBBBBB")
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_PIXELS: Final = frozenset({b"IHDR", b"IDAT", b"IEND", b"tIME"})
"""Chunks that say nothing of how an image looks but for its pixels."""
_PNG_COLOUR_SPACES: Final = frozenset({b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP"})
"""By which TensorFlow's decoder, unlike Pillow, reckons the brightness of a colour."""
_ADAM7: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""x and y of the first pixel of each pass of an interlaced PNG, and the steps (PNG, 8.2)."""
_JPEG_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})
_JPEG_TABLES: Final = frozenset({0xC4, 0xDB, 0xDD, 0xE0, 0xEE})
_JPEG_METADATA: Final = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
_NEXT_MARKER: Final = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_JPEG_QUALITY: Final = 90
_DECODING_BYTES: Final = 4 * 4 * MAX_PIXELS
"""Four copies of the largest image, with transparency."""
_LOSSY: Final = frozenset({"JPEG", "MPO", "WEBP", "AVIF", "HEIF"})
"""Formats whose noise would make a PNG several times as large."""
_REDUCIBLE: Final = frozenset({"L", "RGB", "LA", "RGBA"})
"""Modes of which Pillow averages pixels as they look."""
_REDUCING_GAP: Final = 2.0
"""A JPEG is decoded at an eighth, a quarter or a half if that is this often the size in demand."""


class ImageRejected(Exception):
    """An encoded image cannot be used; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def stored_form(data: bytes, form: Form = ANY_KIND) -> bytes:
    """Returns an image as the pipeline stores it and, in the form of any kind, as clients send it.

    That is the same bytes where they are a PNG (gray or RGB, at most 8 bits, nothing transparent)
    or a JPEG (gray or colour, without metadata) that TensorFlow decodes to what every viewer shows,
    at most `form.max_side` pixels a side. A JPEG with metadata, and an RGB PNG with a colour space,
    is stored without it. All else that Pillow reads (see `upright`) becomes a PNG of 8 bits, or a
    JPEG of quality 90 where a PNG would be larger than `MAX_BYTES`, or what is reduced is a photo
    or comes in a format that is lossy itself. Where the form has a crop, that is what is stored,
    encoded anew.

    Raises:
      ImageRejected: `empty`, `not an image`, `too large` (over `MAX_FILE_BYTES` bytes or
        `MAX_PIXELS` pixels), `too small` (under `MIN_SIDE` pixels a side), `truncated`,
        `unreadable`, `nothing is drawn on it` (contrast under `form.min_contrast`), or
        `needs the heic extra`; of a crop also `no face found`, `several faces` (with their number
        in brackets) or `needs the faces extra`.
      MemoryError: there is too little memory to say what is wrong.
    """
    if not data:
        raise ImageRejected("empty")
    if len(data) > MAX_FILE_BYTES:
        raise ImageRejected("too large")
    with _rejecting():
        plain, levels = None, None
        if data.startswith(_PNG_MAGIC):
            plain, levels = _plain_png(data)
        elif data.startswith(_JPEG_MAGIC):
            plain = _plain_jpeg(data)
        if levels is not None and _needs_no_decoding(data, levels, form):
            return data
        image = _open(data)
        if form.crop is not None:
            return _encoded(image, form)
        fits = max(image.size) <= form.max_side and len(data) <= MAX_BYTES
        if plain is not None and fits:
            if not form.is_photo:
                image.draft("L", image.size)  # of a JPEG, as TensorFlow does
            _check_contrast(image, form)
            if not image.info or _orientation(image) == 1:
                return plain
            image = _open(data)
        return _encoded(image, form)


def stored_form_of(image: Image.Image, form: Form = ANY_KIND) -> bytes:
    """Returns an image in memory as `stored_form` does one in a file.

    Raises:
      ImageRejected: as `stored_form`; `unreadable` also where `upright` finds no fixed range.
    """
    with _rejecting():
        _check_size(image)
        return _encoded(image.copy() if max(image.size) > form.max_side else image, form)


def reduced(data: bytes, side: int) -> Image.Image:
    """Returns an encoded image as it looks, `upright` and at most `side` pixels wide and high.

    Raises:
      ImageRejected: as `stored_form`, but for its contrast.
    """
    with _rejecting():
        return _reduced(_open(data), side)


def upright(image: Image.Image) -> Image.Image:
    """Returns an image as it looks: mode L or RGB, turned by its EXIF, transparent parts white.

    Of 16 bits the upper 8 are kept.

    Raises:
      ImageRejected: its values have no fixed range (32-bit integers beyond 16 bits, or floats).
      OSError: its file is damaged.
    """
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    transparency = image.info.get("transparency")
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise ImageRejected("unreadable")
        pixels = (values >> 8).astype(np.uint8)
        if isinstance(transparency, int):
            pixels[values == transparency] = 255
        return Image.fromarray(pixels)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        image = image.convert("RGB")
    elif image.mode != "RGB":
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    if image.mode == "RGB" and _is_gray(image):
        return image.getchannel(0)
    return image


def image_digest(data: bytes) -> bytes:
    """16 bytes that tell an encoded image from all others; those of copies are equal."""
    return hashlib.blake2b(data, digest_size=16).digest()


@contextmanager
def _rejecting() -> Iterator[None]:
    """Gives whatever Pillow's plugins raise of a damaged file the words of `stored_form`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ImageRejected, MemoryError):
        raise
    except Exception as error:
        _require_memory()
        truncated = "truncated" in str(error).lower()
        raise ImageRejected("truncated" if truncated else "unreadable") from error


def _open(data: bytes) -> Image.Image:
    """Opens an image of bounded size; its pixels are not read yet."""
    heic = data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS
    if heic:
        try:
            import pi_heif  # type: ignore[import-untyped]
        except ImportError:
            raise ImageRejected(NEEDS_HEIC) from None
        pi_heif.register_heif_opener()
    Image.init()
    try:
        formats = [name for name in _FORMATS if name in Image.OPEN]
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        _require_memory()
        known = heic or data.startswith((_PNG_MAGIC, _JPEG_MAGIC))
        raise ImageRejected("unreadable" if known else NOT_AN_IMAGE) from None
    except Image.DecompressionBombError:
        raise ImageRejected("too large") from None
    _check_size(image)
    if image.format == "PNG":
        _scale_transparency(image, depth=data[24])
    return image


def _require_memory() -> None:
    """Raises MemoryError where a sound image, too, may not find the memory to be decoded in.

    Decoders of WebP, AVIF and JPEG say the same of damage and of a lack of memory.
    """
    try:
        mmap.mmap(-1, _DECODING_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        raise MemoryError from None


def _scale_transparency(image: Image.Image, *, depth: int) -> None:
    """Makes Pillow compare the transparent colour of a PNG with pixels as it has scaled them."""
    colour = image.info.get("transparency")
    if image.mode == "L" and depth in (2, 4) and isinstance(colour, int):
        image.info["transparency"] = colour * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16 and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF is no reason not to look at the picture
        return 1


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageRejected("too large")
    if min(image.size) < MIN_SIDE:
        raise ImageRejected("too small")


def _check_contrast(image: Image.Image, form: Form) -> None:
    if not form.is_photo and image.mode not in ("1", "L"):
        image = image.convert("L")
    extrema = image.getextrema()
    ranges = extrema if isinstance(extrema[0], tuple) else (extrema,)
    if max(high - low for low, high in ranges) < form.min_contrast:
        raise ImageRejected("nothing is drawn on it")


def _is_gray(image: Image.Image) -> bool:
    red, green, blue = (np.asarray(image.getchannel(channel)) for channel in range(3))
    return bool((red == green).all() and (green == blue).all())


def _reduced(image: Image.Image, side: int) -> Image.Image:
    """The image, which may be changed, `upright` and at most `side` pixels wide and high."""
    if image.mode not in _REDUCIBLE or "transparency" in image.info:
        image = upright(image)
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP)
    return upright(image)


def _encoded(image: Image.Image, form: Form) -> bytes:
    """Encodes an image anew, which may be changed, in a form."""
    if form.crop is not None:
        image = _face_of(image)
    reduces = max(image.size) > form.max_side
    lossy = (reduces and image.format in _LOSSY) or (
        form.is_photo and (reduces or form.crop is not None)
    )
    image = _reduced(image, form.max_side) if reduces else upright(image)
    _check_size(image)
    _check_contrast(image, form)
    image = image.copy()
    stream = io.BytesIO()
    image.info.clear()
    if not lossy:
        image.save(stream, "PNG")
    if not 0 < stream.tell() <= MAX_BYTES:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _face_of(image: Image.Image) -> Image.Image:
    # Imported where a crop is asked for.
    from data_ingest.sources.faces import MissingFacesExtra, NoSingleFace, face_crop

    try:
        return face_crop(upright(image))
    except (NoSingleFace, MissingFacesExtra) as error:
        raise ImageRejected(str(error)) from error


def _needs_no_decoding(data: bytes, levels: tuple[int, int], form: Form) -> bool:
    """Whether a plain PNG with nothing beside its pixels can be stored, by its range of levels."""
    side = _PNG_HEADER.unpack_from(data, 16)[:2]
    bounded = min(side) >= MIN_SIDE and max(side) <= form.max_side and len(data) <= MAX_BYTES
    return form.crop is None and bounded and levels[1] - levels[0] >= form.min_contrast


def _plain_png(data: bytes) -> tuple[bytes | None, tuple[int, int] | None]:
    """A PNG that TensorFlow decodes as Pillow does, and the range of its levels where rows say it.

    Returns:
      the same PNG, without colour space, else None; and its least and greatest level, 0 to 255, of
      1 or 8 bits of gray that are stored as they are and alone, else None.

    Raises:
      ImageRejected: it is incomplete or damaged, though Pillow may open it.
    """
    chunks = list(_png_chunks(data))
    names = [name for name, _ in chunks]
    critical = [name for name in names if not name[0] & 0x20]
    pictures = [at for at, name in enumerate(names) if name == b"IDAT"]
    sound = (
        names[0] == b"IHDR"
        and len(chunks[0][1]) == 13
        and pictures
        and pictures[-1] - pictures[0] == len(pictures) - 1
        and critical.count(b"IHDR") == critical.count(b"IEND") == 1
        and critical.count(b"PLTE") <= 1
        and not set(critical) - {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
    )
    if not sound:
        raise ImageRejected("unreadable")
    header = _PNG_HEADER.unpack(chunks[0][1])
    width, height, depth, colour, compression, filtering, interlace = header
    if compression or filtering or interlace > 1:
        raise ImageRejected("unreadable")
    palette = names.index(b"PLTE") if b"PLTE" in names else None
    if colour == 3 and (palette is None or palette > pictures[0]):
        raise ImageRejected("unreadable")
    if not 0 < width * height <= MAX_PIXELS:
        return None, None
    bits = _PNG_CHANNELS.get(colour, 0) * depth
    size = height * (1 + (width * bits + 7) // 8)
    if interlace:
        sides = [
            (-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in _ADAM7
        ]
        size = sum(
            down * (1 + (across * bits + 7) // 8) for across, down in sides if across > 0 < down
        )
    rows, whole = _unpacked(b"".join(part for name, part in chunks if name == b"IDAT"), size)
    if len(rows) < size:
        raise ImageRejected("truncated")
    if interlace or colour not in (0, 2) or depth > 8 or {b"tRNS", b"eXIf", b"fcTL"} & set(names):
        return None, None
    filters = rows[:: size // height]
    if not whole or max(filters) > 4:
        return None, None
    if colour == 2 and _PNG_COLOUR_SPACES & set(names):
        parts = ((name, content) for name, content in chunks if name in critical)
        return _PNG_MAGIC + b"".join(_png_chunk(name, content) for name, content in parts), None
    if colour or depth not in (1, 8) or any(filters) or not _PNG_PIXELS.issuperset(names):
        return data, None
    pixels = np.frombuffer(rows, np.uint8).reshape(height, -1)[:, 1:]
    if depth == 1:
        pixels = np.unpackbits(pixels, axis=1, count=width) * 255
    return data, (int(pixels.min()), int(pixels.max()))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of a PNG's chunks up to its end. Checksums of the critical ones hold."""
    position = len(_PNG_MAGIC)
    while position + 12 <= len(data):
        length, name = _PNG_CHUNK.unpack_from(data, position)
        end = position + 12 + length
        if end > len(data):
            break
        content = data[position + 8 : end - 4]
        if not name[0] & 0x20:
            checksum = int.from_bytes(data[end - 4 : end], "big")
            if zlib.crc32(content, zlib.crc32(name)) != checksum:
                raise ImageRejected("unreadable")
        yield name, content
        if name == b"IEND":
            return
        position = end
    raise ImageRejected("truncated")


def _unpacked(stream: bytes, size: int) -> tuple[bytes, bool]:
    """The rows of a PNG, of which there are to be `size` bytes, or a byte more.

    Returns:
      rows, and whether TensorFlow unpacks as many and finds nothing behind them.

    Raises:
      ImageRejected: the stream is damaged.
    """
    unpack = zlib.decompressobj()
    try:
        rows = unpack.decompress(stream, size + 1)
    except zlib.error:
        raise ImageRejected("unreadable") from None
    # TensorFlow looks back no further than the stream says that it need.
    window = 2 ** ((stream[0] >> 4) + 8) if stream else 0
    whole = unpack.eof and not unpack.unused_data and len(rows) == size
    return rows, whole and window >= min(size, 2**zlib.MAX_WBITS)


def _png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return _PNG_CHUNK.pack(len(content), name) + content + checksum.to_bytes(4, "big")


def _plain_jpeg(data: bytes) -> bytes | None:
    """The JPEG without metadata where TensorFlow decodes it as Pillow does, else None."""
    kept = [data[:2]]
    position, colours = 2, 0
    # Of each progressive coefficient the bits that later scans bring.
    missing: dict[tuple[int, int], int] = {}
    while position + 2 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xD9:
            # Decoders differ in how they smooth over what scans are lacking.
            whole = colours and not any(missing.values())
            return b"".join([*kept, data[position : position + 2]]) if whole else None
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position:end]
        if marker in _JPEG_FRAMES and len(segment) > 9 and not colours:
            colours = segment[9]
            if segment[4] != 8 or colours not in (1, 3):
                return None
            if marker == 0xC2:
                missing = {(name, at): 8 for name in segment[10::3] for at in range(64)}
        elif marker == 0xDA and colours:
            found = _NEXT_MARKER.search(data, end)
            if found is None:
                return None
            if missing:
                *names, first, last, bits = segment[5:]
                places = range(first, last + 1)
                missing |= {(name, at): bits & 15 for name in names[::2] for at in places}
            end = found.start()
            segment = data[position:end]
        elif marker not in _JPEG_TABLES | _JPEG_METADATA:
            return None
        if segment[4:9] == b"Adobe" and segment[15:16] != b"\x01":
            return None
        if marker not in _JPEG_METADATA:
            kept.append(segment)
        position = end
    return None
