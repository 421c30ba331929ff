"""Damages encoded images in many ways, whole chunks and segments too, at random but repeatably."""

import struct
import zlib

import numpy as np

from tests.image_variants import tiff_header
from tests.png_encoder import MAGIC, Chunk, assemble, chunk

Rng = np.random.Generator
Segment = tuple[int, bytes | None]
"""Marker of a JPEG and what follows it; None where nothing does, not even a length."""

_JPEG: bytes = b"\xff\xd8"
_SIDES = (0, 1, 3, 4, 8, 13, 16, 20, 21, 22, 48, 64, 65, 4096, 4097, 2**31 - 1)


def damaged(rng: Rng, data: bytes) -> bytes:
    """The image with one to three things wrong, or at least unusual."""
    for _ in range(1 if rng.random() < 0.7 else rng.integers(2, 4)):
        if rng.random() < 0.75 and data.startswith(MAGIC):
            data = _png(rng, data)
        elif rng.random() < 0.75 and data.startswith(_JPEG):
            data = _jpeg(rng, data)
        else:
            data = _bytes(rng, data)
    return data


def _bytes(rng: Rng, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    place = int(rng.integers(len(changed)))
    match rng.integers(7):
        case 0:
            changed[place] = rng.integers(256)
        case 1:
            changed[place] ^= 1 << rng.integers(8)
        case 2:
            del changed[place:]
        case 3:
            changed += rng.bytes(int(rng.integers(1, 50)))
        case 4:
            del changed[place : place + rng.integers(1, 20)]
        case 5:
            changed[place:place] = changed[:40]
        case 6:
            changed[rng.integers(min(64, len(changed)))] = rng.choice([0, 1, 127, 128, 255])
    return bytes(changed)


def _png(rng: Rng, data: bytes) -> bytes:
    parts = _chunks(data)
    if not parts:
        return _bytes(rng, data)
    at, other = (int(rng.integers(len(parts))) for _ in range(2))
    name, body = parts[at]
    pixels = [place for place, part in enumerate(parts) if part[0] == b"IDAT"]
    match rng.integers(11):
        case 0:
            del parts[at]
        case 1:
            parts.insert(other, parts[at])
        case 2:
            parts[at], parts[other] = parts[other], parts[at]
        case 3 | 4:
            parts.insert(at + 1, _extra_chunk(rng, parts))
        case 5 if len(parts[0][1]) == 13:
            parts[0] = parts[0][0], _png_header(rng, parts[0][1])
        case 6:
            parts[at] = name, _bytes(rng, body)
        case 7 if pixels:
            cut = int(rng.integers(1 + len(parts[pixels[0]][1])))
            first = parts[pixels[0]][1]
            pieces = [(b"IDAT", first[:cut]), (b"IDAT", first[cut:])]
            if rng.random() < 0.5:
                pieces.insert(1, _extra_chunk(rng, parts))
            parts[pixels[0] : pixels[0] + 1] = pieces
        case 8 if pixels:
            packed = _repacked(rng, b"".join(parts[place][1] for place in pixels))
            parts = [part for part in parts if part[0] != b"IDAT"]
            parts.insert(pixels[0], (b"IDAT", packed))
        case 9:
            sound = [place != at for place in range(len(parts))]
            wrong = (chunk(*part, sound=ok) for part, ok in zip(parts, sound, strict=True))
            return MAGIC + b"".join(wrong)
        case 10:
            case = bytearray(name)
            case[rng.integers(4)] ^= 0x20
            parts[at] = bytes(case), body
    return assemble(parts)


def _chunks(data: bytes) -> list[Chunk]:
    found, place = [], len(MAGIC)
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        found.append((name, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def _png_header(rng: Rng, body: bytes) -> bytes:
    fields = list(struct.unpack(">IIBBBBB", body))
    field = int(rng.integers(7))
    fields[field] = int(rng.choice(_SIDES[:7] if field > 1 else _SIDES))
    return struct.pack(">IIBBBBB", *fields)


def _extra_chunk(rng: Rng, parts: list[Chunk]) -> Chunk:
    extra = [
        *((b"tEXt", b"a\0b"), (b"zTXt", b"a\0\0" + zlib.compress(b"x" * 50)), (b"tIME", bytes(7))),
        *((b"gAMA", struct.pack(">I", gamma)) for gamma in (0, 1, 45455, 100_000, 220_000)),
        *((b"sRGB", rng.bytes(1)), (b"cHRM", rng.bytes(32)), (b"iCCP", rng.bytes(20))),
        *((b"iCCP", b"x\0\0" + zlib.compress(rng.bytes(200))), (b"cICP", bytes([1, 13, 0, 1]))),
        *((b"sBIT", rng.bytes(int(rng.integers(5)))), (b"bKGD", rng.bytes(6)), (b"hIST", b"12")),
        *((b"eXIf", tiff_header(int(rng.integers(10)), "<>"[rng.integers(2)])),),
        *((b"eXIf", rng.bytes(30)), (b"pHYs", rng.bytes(9)), (b"acTL", struct.pack(">II", 2, 0))),
        (b"fcTL", struct.pack(">IIIIIHHBB", 0, 5, 5, 1, 1, 1, 10, 0, 0)),
        *((b"fdAT", rng.bytes(20)), (b"PLTE", rng.bytes(3 * int(rng.integers(1, 257))))),
        *((b"PLTE", rng.bytes(5)), (b"tRNS", rng.bytes(int(rng.choice([0, 1, 2, 3, 6, 256]))))),
        *((b"tRNS", bytes(int(rng.choice([1, 2, 6])))), (b"IDAT", b""), (b"IDAT", rng.bytes(9))),
        *((b"ABCD", b"critical"), (b"abCd", b"private"), (b"CgBI", bytes(4)), (b"IEND", b"")),
        *(parts[0], parts[-1]),
    ]
    return extra[rng.integers(len(extra))]


def _repacked(rng: Rng, packed: bytes) -> bytes:
    """The pixels of a PNG packed anew, and not quite as they should be."""
    try:
        rows = zlib.decompress(packed)
    except zlib.error:
        return _bytes(rng, packed)
    whole = zlib.compress(rows)
    match rng.integers(7):
        case 0:
            return zlib.compress(_bytes(rng, rows))
        case 1:
            return zlib.compress(rows[: rng.integers(1 + len(rows))])
        case 2:
            return zlib.compress(rows + bytes(int(rng.integers(1, 4000))))
        case 3:
            return whole[:-4] + b"\1\2\3\4"
        case 4:
            return whole[: -int(rng.integers(1, 6))]
        case 5:
            return whole + rng.bytes(int(rng.integers(1, 30)))
    start = int(rng.integers(16)) << 12 | 8 << 8 | int(rng.choice([0, 0x20]))
    return struct.pack(">H", start + 31 - start % 31) + whole[2:]


def _jpeg(rng: Rng, data: bytes) -> bytes:
    segments, scan = _segments(data)
    if not segments:
        return _bytes(rng, data)
    at, other = (int(rng.integers(len(segments))) for _ in range(2))
    marker, body = segments[at]
    match rng.integers(11):
        case 0:
            del segments[at]
        case 1:
            segments.insert(other, segments[at])
        case 2:
            segments[at], segments[other] = segments[other], segments[at]
        case 3 | 4:
            segments.insert(other, _extra_segment(rng))
        case 5:
            segments = [_frame(rng, *segment) for segment in segments]
        case 6 if body is not None:
            segments[at] = marker, _bytes(rng, body)
        case 7 | 8:
            scan = _bytes(rng, scan)
        case 9:
            place = int(rng.integers(1 + len(scan)))
            scan = scan[:place] + _segment(*_extra_segment(rng)) + scan[place:]
        case 10:
            scan = (scan + data, scan + _segment(*segments[-1]) + scan, scan[:-9] + b"\xff\xd9")[
                rng.integers(3)
            ]
    return _JPEG + b"".join(_segment(*segment) for segment in segments) + scan


def _segments(data: bytes) -> tuple[list[Segment], bytes]:
    """The segments up to the first scan's header, and what follows it."""
    found: list[Segment] = []
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and (not found or found[-1][0] != 0xDA):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in (0x01, *range(0xD0, 0xDA)):
            found.append((marker, None))
            place += 2
        else:
            found.append((marker, data[place + 4 : place + 2 + length]))
            place += 2 + length
    return found, data[place:]


def _segment(marker: int, body: bytes | None) -> bytes:
    length = b"" if body is None else struct.pack(">H", min(len(body) + 2, 0xFFFF)) + body
    return bytes([0xFF, marker]) + length


def _frame(rng: Rng, marker: int, body: bytes | None) -> Segment:
    """Something else in the header of the frame; other segments as they are."""
    if not body or not 0xC0 <= marker <= 0xCF or marker in (0xC4, 0xC8, 0xCC):
        return marker, body
    changed = bytearray(body)
    match rng.integers(4):
        case 0:
            return int(rng.choice([0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA])), body
        case 1:
            changed[0] = rng.choice([0, 2, 8, 12, 16])
        case 2:
            place = 1 + 2 * int(rng.integers(2))
            changed[place : place + 2] = struct.pack(">H", int(rng.choice(_SIDES[:-1])))
        case 3:
            values = (0, 1, 2, 3, 4, 0x11, 0x12, 0x14, 0x21, 0x22, 0x41, 0x44, *b"RGB")
            changed[rng.integers(min(5, len(changed) - 1), len(changed))] = rng.choice(values)
    return marker, bytes(changed)


def _extra_segment(rng: Rng) -> Segment:
    turned = tiff_header(int(rng.integers(10)), "<>"[rng.integers(2)])
    extra: list[Segment] = [
        *((0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"), (0xE0, b"JFXX\0\x10" + rng.bytes(10))),
        *((0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform])) for transform in range(3)),
        *((0xEE, b"Adobe"), (0xE1, b"Exif\0\0" + turned), (0xE1, b"Exif\0\1" + turned)),
        *((0xE1, b"Exif\0\0" + rng.bytes(30)), (0xE1, b"Exif\0\0"), (0xED, b"Photoshop 3.0\0")),
        *((0xE2, b"ICC_PROFILE\0\1\1" + rng.bytes(40)), (0xE2, b"MPF\0" + rng.bytes(40))),
        *((0xFE, b"comment"), (0xFE, b""), (0xEF, rng.bytes(9)), (0xC4, b""), (0xDB, b"")),
        *((0xDD, struct.pack(">H", int(rng.integers(5)))), (0xDD, b"")),
        *((0xDC, struct.pack(">H", int(rng.integers(70)))), (0xCC, rng.bytes(4))),
        *((0xC8, rng.bytes(6)), (0x02, rng.bytes(4)), (0xF7, rng.bytes(6))),
        *((marker, None) for marker in (0x01, 0xD0, 0xD7, 0xD8, 0xD9, 0x00, 0xFF)),
    ]
    return extra[rng.integers(len(extra))]
