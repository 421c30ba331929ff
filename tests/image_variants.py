"""What people call an image: every kind of PNG and JPEG, other formats, blank and broken files.

`variants()` has them all. Each says what a viewer shows of it on white paper, where that is
certain, so that whatever decodes images can be held against it.
"""

import functools
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, features

from tests import png_encoder
from tests.png_encoder import GRAY, GRAY_ALPHA, INDEXED, RGB, RGB_ALPHA, assemble, chunks

Levels = npt.NDArray[np.float64]

WIDTH, HEIGHT = 21, 13
"""Odd, so that rows end within a byte and Adam7's passes are of different sizes."""
SIDES = (48, 64)
"""Width and height of the lossy ones, whose blocks are 8 or 16 pixels wide."""


class Variant(NamedTuple):
    """An encoded image.

    Attributes:
      name: its kind is the first word: png, jpeg, webp, ...
      data: the file.
      looks: brightness on white paper, turned upright: `[H, W]` in 0 to 255. None where viewers
        differ or show nothing.
      blank: nothing is drawn on it, or next to nothing.
      broken: viewers may show some of it, but it is damaged or not as its format has it.
    """

    name: str
    data: bytes
    looks: Levels | None = None
    blank: bool = False
    broken: bool = False

    @property
    def kind(self) -> str:
        return self.name.partition(" ")[0]


@functools.cache
def variants() -> tuple[Variant, ...]:
    """All variants; names are unique."""
    made = (*_pngs(), *_unusual_pngs(), *_jpegs(), *_turned_jpegs(), *_other_formats())
    found = (*made, *_extreme(), *_blank(), *_broken_pngs(), *_broken_jpegs())
    names = [variant.name for variant in found]
    assert len(set(names)) == len(names), sorted(names)
    return found


def pillow_view(data: bytes) -> Levels:
    """What Pillow shows of an image on white paper: `[H, W]` in 0 to 255."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I"):  # 16 bits
        return np.asarray(image).astype(np.float64) // 256
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L")).astype(np.float64)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file of this kind."""
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def drawing(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Coloured shapes on shaded paper, the same neither turned nor mirrored."""
    rows, columns = np.mgrid[:height, :width] / np.array([[[height]], [[width]]])
    page = np.stack([255 - 40 * rows, 255 - 30 * columns, 235 - 20 * rows * columns], axis=-1)
    page[(columns > 0.2) & (columns < 0.4) & (rows > 0.1)] = (20, 20, 60)
    page[(columns > 0.2) & (columns < 0.9) & (rows > 0.1) & (rows < 0.35)] = (200, 30, 40)
    page[(columns > 0.6) & (columns < 0.8) & (rows > 0.55) & (rows < 0.8)] = (10, 120, 90)
    return Image.fromarray(page.astype(np.uint8))


def _pngs() -> Iterator[Variant]:
    """All colour types, bit depths, with and without tRNS, with and without interlacing."""
    rng = np.random.default_rng(1)
    kinds = {
        (GRAY, "gray", 1): (1, 2, 4, 8, 16),
        (RGB, "RGB", 3): (8, 16),
        (INDEXED, "indexed", 1): (1, 2, 4, 8),
        (GRAY_ALPHA, "gray with alpha", 2): (8, 16),
        (RGB_ALPHA, "RGB with alpha", 4): (8, 16),
    }
    for (colour_type, word, channels), depths in kinds.items():
        for depth in depths:
            samples = rng.integers(0, 1 << depth, (HEIGHT, WIDTH, channels))
            # Some pixels have the colour that tRNS makes transparent; not all of the ink.
            samples[:4, :4] = samples[6, 6] if depth > 1 else 1
            palette, single = None, samples[0, 0].tolist()
            if colour_type == INDEXED:
                palette = rng.integers(0, 256, (1 << depth, 3))
                palette[:2] = (0, 0, 90), (255, 250, 255)
                single = rng.integers(0, 256, max(1, (1 << depth) - 3)).tolist()
            for transparency in (None, single):
                if transparency and colour_type in (GRAY_ALPHA, RGB_ALPHA):
                    continue
                for interlaced in (False, True):
                    how: dict[str, Any] = {"palette": palette, "transparency": transparency}
                    how["interlaced"] = interlaced
                    name = f"png {word} {depth} bits{' tRNS' * bool(transparency)}"
                    yield Variant(
                        name + " interlaced" * interlaced,
                        assemble(chunks(samples, depth, colour_type, **how)),
                        png_encoder.looks(samples, depth, colour_type, **how),
                    )


def _sound_png() -> tuple[list[png_encoder.Chunk], Levels]:
    samples = np.asarray(drawing())
    return chunks(samples, 8, RGB), png_encoder.looks(samples, 8, RGB)


def _unusual_pngs() -> Iterator[Variant]:
    """What the specification allows and common encoders do not write, or seldom."""
    (ihdr, idat, iend), shown = _sound_png()
    profile = b"profile\0\0" + zlib.compress(b"\0" * 600)
    transparent = (b"tRNS", struct.pack(">3H", 20, 20, 60))
    ink = (np.asarray(drawing()) == (20, 20, 60)).all(axis=-1)
    clear = np.where(ink, 255.0, shown)
    for name, extra in {
        "gAMA": (b"gAMA", struct.pack(">I", 45455)),
        "gAMA of 1.0": (b"gAMA", struct.pack(">I", 100000)),
        "sRGB": (b"sRGB", b"\0"),
        "cHRM": (
            b"cHRM",
            struct.pack(">8I", *[31270, 32900, 64000, 33000, 30000, 60000, 15000, 6]),
        ),
        "iCCP that is no profile": (b"iCCP", profile),
        "pHYs": (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
        "unknown ancillary chunk": (b"abCd", b"whatever"),
        "100 kB of text": (b"tEXt", b"Comment\0" + b"a" * 100_000),
        "tRNS in its text": (b"tEXt", b"Comment\0tRNS IDAT eXIf"),
    }.items():
        yield Variant(f"png with {name}", assemble([ihdr, extra, idat, iend]), shown)
    text = (b"tEXt", b"Comment\0" + b"a" * 100_000)
    parts = [ihdr, text, transparent, idat, iend]
    yield Variant("png with 100 kB of text and tRNS", assemble(parts), clear)
    third = len(idat[1]) // 3
    pieces = [(b"IDAT", idat[1][:third]), (b"IDAT", b""), (b"IDAT", idat[1][third:])]
    yield Variant("png with three IDAT", assemble([ihdr, *pieces, iend]), shown)
    yield Variant("png with bytes behind it", assemble([ihdr, idat, iend]) + b"\0tail" * 9, shown)
    late = assemble([ihdr, idat, (b"tEXt", b"Comment\0late"), iend])
    yield Variant("png with text behind its pixels", late, shown)
    for orientation in (1, 3, 6):
        for order in "<>":
            exif = (b"eXIf", tiff_header(orientation, order))
            turned = _turned(shown, orientation)
            name = f"png with eXIf {orientation} {_ORDERS[order]}"
            yield Variant(name, assemble([ihdr, exif, idat, iend]), turned)
    yield Variant("png with broken eXIf", assemble([ihdr, (b"eXIf", b"MM\0*"), idat, iend]), shown)
    gray = np.asarray(drawing(5, 4).convert("L"))[..., np.newaxis]
    small = assemble(chunks(gray, 8, GRAY, interlaced=True))
    yield Variant("png 5x4 interlaced", small, gray[..., 0].astype(np.float64))
    frames = [drawing(), drawing().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    animated = encoded(frames[0], "png", save_all=True, append_images=frames[1:])
    yield Variant("png animated", animated, shown)
    optimised = drawing().quantize(5)
    yield Variant(
        "png quantized and optimised by Pillow",
        encoded(optimised, "png", optimize=True),
        np.asarray(optimised.convert("RGB")) @ png_encoder.LUMA,
    )


_ORDERS = {"<": "little-endian", ">": "big-endian"}


def tiff_header(orientation: int, order: str = "<", *, offset: int = 8, entries: int = 2) -> bytes:
    """EXIF data, without a JPEG's `Exif\\0\\0`: a make, then the orientation.

    Args:
      orientation: 1 to 8, or what is not allowed.
      order: `<` or `>`, as in `struct`.
      offset: where it says that its directory begins; it begins at 8.
      entries: how many it says that there are; there are 2.
    """
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", offset)
    make = struct.pack(f"{order}HHI4s", 0x010F, 2, 4, b"abc\0")
    turned = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return start + struct.pack(f"{order}H", entries) + make + turned + bytes(4)


def _turned(shown: Levels, orientation: int) -> Levels:
    """Levels as stored to levels as shown."""
    if orientation >= 5:
        shown = shown.T
    if orientation in (2, 3, 6, 7):
        shown = shown[:, ::-1]
    return shown[::-1] if orientation in (3, 4, 7, 8) else shown


def _jpeg_variant(name: str, data: bytes) -> Variant:
    return Variant(f"jpeg {name}", data, pillow_view(data))


def _jpegs() -> Iterator[Variant]:
    image = drawing(*SIDES)
    for name, options in {
        "RGB": {},
        "progressive": {"progressive": True},
        "optimised": {"optimize": True},
        "restart markers": {"restart_marker_blocks": 2},
        "4:4:4": {"subsampling": 0},
        "4:2:2": {"subsampling": 1},
        "4:2:0 progressive": {"subsampling": 2, "progressive": True},
        "quality 30": {"quality": 30},
        "stored as RGB": {"keep_rgb": True},
        "with a comment": {"comment": b"Exif\0\0II*\0"},
    }.items():
        yield _jpeg_variant(name, encoded(image, "jpeg", **options))
    yield _jpeg_variant("gray", encoded(image.convert("L"), "jpeg"))
    yield _jpeg_variant("gray progressive", encoded(image.convert("L"), "jpeg", progressive=True))
    yield _jpeg_variant("21x13", encoded(drawing(), "jpeg"))
    cmyk = encoded(image.convert("CMYK"), "jpeg")
    yield _jpeg_variant("CMYK", cmyk)
    at = cmyk.index(b"Adobe") + 11
    yield _jpeg_variant("YCCK", cmyk[:at] + b"\2" + cmyk[at + 1 :])
    plain = encoded(image, "jpeg")
    tables, scan = plain.index(b"\xff\xc4"), plain.index(b"\xff\xda")
    yield _jpeg_variant("without Huffman tables, as in videos", plain[:tables] + plain[scan:])
    yield _jpeg_variant("with bytes behind it", plain + b"tail" * 50)
    second = image.transpose(Image.Transpose.ROTATE_180)
    yield _jpeg_variant("MPO", encoded(image, "mpo", save_all=True, append_images=[second]))


def _turned_jpegs() -> Iterator[Variant]:
    plain = encoded(drawing(*SIDES), "jpeg", quality=90)
    shown = pillow_view(plain)

    def with_segments(*bodies: bytes, marker: bytes = b"\xff\xe1") -> bytes:
        segments = b"".join(marker + struct.pack(">H", len(body) + 2) + body for body in bodies)
        return plain[:2] + segments + plain[2:]

    def exif(*arguments: Any, **options: Any) -> bytes:
        return b"Exif\0\0" + tiff_header(*arguments, **options)

    for orientation in range(1, 9):
        for order in "<>":
            yield Variant(
                f"jpeg orientation {orientation} {_ORDERS[order]}",
                with_segments(exif(orientation, order)),
                _turned(shown, orientation),
            )
    at = 4 + int.from_bytes(plain[4:6], "big")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif(6)) + 2) + exif(6)
    after_jfif = plain[:at] + segment + plain[at:]
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"
    for name, data, orientation in [
        ("orientation 6 behind JFIF", after_jfif, 6),
        ("orientation 8 behind XMP", with_segments(xmp, exif(8)), 8),
        ("orientation 0", with_segments(exif(0)), 1),
        ("orientation 9", with_segments(exif(9)), 1),
        ("EXIF in another segment", with_segments(exif(6), marker=b"\xff\xed"), 1),
        ("EXIF without anything", with_segments(b"Exif\0\0"), 1),
        ("EXIF of another byte order", with_segments(b"Exif\0\0XX*\0" + exif(6)[10:]), 1),
        ("EXIF cut off in its directory", with_segments(exif(6)[:20]), 1),
        ("EXIF whose directory is elsewhere", with_segments(exif(6, offset=0xFFFFFFF0)), 1),
        ("EXIF with too many entries", with_segments(exif(6, entries=0xFFFF)), 6),
    ]:
        yield Variant(f"jpeg {name}", data, _turned(shown, orientation))


def _other_formats() -> Iterator[Variant]:
    image = drawing()
    gray, lossy = image.convert("L"), drawing(*SIDES)
    shown = np.asarray(image) @ png_encoder.LUMA
    levels = np.asarray(gray).astype(np.float64)
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray((levels < 150).astype(np.uint8) * 255))
    on_white = np.where(levels < 150, shown, 255.0)
    two = gray.point(lambda level: 255 * (level > 128)).convert("1")
    black_white = np.asarray(two) * 255.0
    indexed = image.quantize(7)
    colours = np.asarray(indexed.convert("RGB")) @ png_encoder.LUMA
    deep = np.asarray(gray).astype(np.uint16) * 256 + 77
    frames: dict[str, Any] = {
        "save_all": True,
        "append_images": [image.transpose(Image.Transpose.ROTATE_180)],
    }
    yield Variant("webp lossless", encoded(image, "webp", lossless=True), shown)
    yield Variant("webp with alpha", encoded(clear, "webp", lossless=True), on_white)
    yield Variant("webp animated", encoded(image, "webp", lossless=True, **frames), shown)
    data = encoded(lossy, "webp", quality=80)
    yield Variant("webp lossy", data, pillow_view(data))
    data = encoded(lossy, "webp", lossless=True, exif=b"Exif\0\0" + tiff_header(6))
    turned = _turned(np.asarray(lossy) @ png_encoder.LUMA, 6)
    yield Variant("webp orientation 6", data, turned)
    yield Variant("bmp 24 bits", encoded(image, "bmp"), shown)
    yield Variant("bmp gray", encoded(gray, "bmp"), levels)
    yield Variant("bmp 1 bit", encoded(two, "bmp"), black_white)
    yield Variant("bmp indexed", encoded(indexed, "bmp"), colours)
    yield Variant("tiff RGB", encoded(image, "tiff"), shown)
    yield Variant("tiff gray LZW", encoded(gray, "tiff", compression="tiff_lzw"), levels)
    yield Variant("tiff RGB deflate", encoded(image, "tiff", compression="tiff_deflate"), shown)
    yield Variant("tiff fax", encoded(two, "tiff", compression="group4"), black_white)
    yield Variant("tiff 16 bits", encoded(Image.fromarray(deep), "tiff"), levels)
    yield Variant("tiff with alpha", encoded(clear, "tiff"), on_white)
    yield Variant("tiff of two pages", encoded(image, "tiff", **frames), shown)
    yield Variant(
        "tiff orientation 6", encoded(image, "tiff", tiffinfo={274: 6}), _turned(shown, 6)
    )
    data = encoded(image.convert("CMYK"), "tiff")
    yield Variant("tiff CMYK", data, pillow_view(data))
    yield Variant("gif", encoded(indexed, "gif"), colours)
    yield Variant("gif gray", encoded(gray, "gif"), levels)
    data = encoded(indexed, "gif", transparency=int(np.asarray(indexed)[0, 0]))
    paper = np.asarray(indexed) == np.asarray(indexed)[0, 0]
    yield Variant("gif with transparency", data, np.where(paper, 255.0, colours))
    animated = encoded(gray, "gif", save_all=True, append_images=[gray.rotate(180)])
    yield Variant("gif animated", animated, levels)
    yield Variant("ppm", encoded(image, "ppm"), shown)
    yield Variant("pgm", encoded(gray, "ppm"), levels)
    size = f"{WIDTH} {HEIGHT}".encode()
    yield Variant("pgm 16 bits", b"P5 " + size + b" 65535\n" + deep.astype(">u2").tobytes(), levels)
    yield Variant("pbm", encoded(two, "ppm"), black_white)
    if features.check("avif"):
        data = encoded(lossy, "avif", quality=90)
        yield Variant("avif", data, pillow_view(data))


def _extreme() -> Iterator[Variant]:
    for width, height in ((4096, 1), (1, 4096), (4096, 4)):
        stripes = np.tile(np.arange(width * height) % 3 * 127, 1).reshape(height, width, 1)
        name = f"png {width}x{height}"
        yield Variant(name, assemble(chunks(stripes, 8, GRAY)), stripes[..., 0].astype(np.float64))
    yield _jpeg_variant("2x2", encoded(Image.fromarray(np.eye(2, dtype=np.uint8) * 255), "jpeg"))


def _blank() -> Iterator[Variant]:
    """Nothing is to be seen on them, or next to nothing."""

    def page(level: int) -> npt.NDArray[np.int64]:
        return np.full((HEIGHT, WIDTH, 1), level)

    def png(samples: npt.NDArray[Any], depth: int, colour_type: int, **options: Any) -> bytes:
        return assemble(chunks(samples, depth, colour_type, **options))

    ink = page(0)
    ink[4:8, 5:15] = 1
    rgb = np.repeat(page(255), 3, axis=-1)
    white_on_clear = np.concatenate([np.repeat(page(255), 3, axis=-1), 255 * ink], axis=-1)
    white = Image.new("RGB", SIDES, "white")
    files = {
        "png white": png(page(255), 8, GRAY),
        "png black": png(page(0), 8, GRAY),
        "png middle gray": png(page(128), 8, GRAY),
        "png white 1 bit": png(page(1), 1, GRAY),
        "png white 16 bits": png(page(65535), 16, GRAY),
        "png white RGB": png(rgb, 8, RGB),
        "png red": png(rgb * [1, 0, 0], 8, RGB),
        "png indexed of one colour": png(page(0), 1, INDEXED, palette=np.array([[9, 99, 200]])),
        "png indexed, two whites": png(ink, 1, INDEXED, palette=np.full((2, 3), 255)),
        "png transparent": png(np.zeros((HEIGHT, WIDTH, 4), int), 8, RGB_ALPHA),
        "png white ink on a transparent page": png(white_on_clear, 8, RGB_ALPHA),
        "png ink of tRNS": png(255 - 255 * ink, 8, GRAY, transparency=[0]),
        "png of 12 bits in 16": png(ink * 4095, 16, GRAY),
        "png contrast of 15 levels": png(255 - 15 * ink, 8, GRAY),
        "png 1x1": png(np.zeros((1, 1, 1), int), 8, GRAY),
        "jpeg white": encoded(white, "jpeg"),
        "jpeg white gray": encoded(white.convert("L"), "jpeg"),
        "jpeg almost white": encoded(
            Image.fromarray(np.pad(np.full((20, 20), 245, np.uint8), 14, constant_values=255)),
            "jpeg",
        ),
        "webp white": encoded(white, "webp"),
        "bmp white": encoded(white, "bmp"),
        "tiff white": encoded(white, "tiff"),
        "gif white": encoded(white.convert("L"), "gif"),
        "pgm white": encoded(white.convert("L"), "ppm"),
    }
    for name, data in files.items():
        yield Variant(f"{name} (blank)", data, pillow_view(data), blank=True)


def _broken_pngs() -> Iterator[Variant]:
    (ihdr, idat, iend), _ = _sound_png()
    sound = assemble([ihdr, idat, iend])
    samples = np.asarray(drawing().convert("L"))[..., np.newaxis]

    def ihdr_of(width: int = WIDTH, height: int = HEIGHT, depth: int = 8) -> png_encoder.Chunk:
        return b"IHDR", png_encoder.header(width, height, depth, RGB, interlaced=False)

    start, end = png_encoder.MAGIC + png_encoder.chunk(*ihdr), png_encoder.chunk(*iend)
    bad_pixels = start + png_encoder.chunk(*idat, sound=False) + end
    bad_header = png_encoder.MAGIC + png_encoder.chunk(*ihdr, sound=False)
    index = samples // 16
    files = {
        "with missing rows": assemble([ihdr_of(height=HEIGHT + 9), idat, iend]),
        "without PLTE": assemble(chunks(index, 4, INDEXED)),
        "with an unknown critical chunk": assemble([ihdr, (b"ABCD", b"what"), idat, iend]),
        "with two IHDR": assemble([ihdr, ihdr, idat, iend]),
        "with a bad checksum of its header": bad_header + png_encoder.chunk(*idat) + end,
        "with a bad checksum of its pixels": bad_pixels,
        "with a chunk longer than the file": sound[:33] + b"\x7f\xff\xff\xfftEXt" + sound[33:],
        "without pixels": assemble([ihdr, iend]),
        "without its end": sound[:-12],
        "cut off in its pixels": sound[: len(sound) // 2],
        "cut off in its header": sound[:20],
        "of its magic alone": sound[:8],
        "of zero width": assemble([ihdr_of(width=0), idat, iend]),
        "of 3 bits": assemble([ihdr_of(depth=3), idat, iend]),
    }
    for name, data in files.items():
        yield Variant(f"png {name} (broken)", data, broken=True)


def _broken_jpegs() -> Iterator[Variant]:
    sound = encoded(drawing(*SIDES), "jpeg")
    progressive = encoded(drawing(*SIDES), "jpeg", progressive=True)
    files = {
        "without its end": sound[:-2],
        "cut off near its end": sound[:-40],
        "cut off in the middle": sound[: sound.index(b"\xff\xda") + 60],
        "cut off in its header": sound[:100],
        "of its magic alone": sound[:4],
        "progressive cut off": progressive[: len(progressive) // 2],
    }
    for name, data in files.items():
        yield Variant(f"jpeg {name} (broken)", data, broken=True)
    yield Variant("nothing at all (broken)", b"", broken=True)
    yield Variant("text (broken)", b"this is not an image\n" * 9, broken=True)
    gif = encoded(drawing().quantize(7), "gif")
    yield Variant("gif cut off (broken)", gif[: len(gif) // 2], broken=True)
