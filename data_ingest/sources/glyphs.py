"""Draws handwriting-like glyphs in Omniglot's layout, for when there are no real images.

The same settings and seed give the same pixels on every platform: coordinates are rounded to
1/64 pixel before they are drawn, and drawn in whole numbers.
"""

import logging
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_ingest.durable import replacing
from data_ingest.progress import counted

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SIDE: Final = 105
"""Pixels a side, as in Omniglot."""
WRITERS: Final = 20
REVISION: Final = 1
"""To be raised with every change of what is drawn, so that cached glyphs are drawn again."""

_STEPS: Final = 64
"""Points on a stroke."""
_INK_BOX: Final = 80.0
_GRID: Final = 64
_UPSAMPLING: Final = 4
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_log = logging.getLogger(__name__)


def write_glyphs(
    path: Path,
    *,
    alphabets: int,
    characters: int,
    seed: int,
    writers: int = WRITERS,
    first_alphabet: int = 1,
) -> None:
    """Writes a zip of generated alphabets: `<stem>/Generated_01/character01/0001_01.png`.

    The file appears whole or not at all. An alphabet is a pure function of (`seed`, its number),
    so zips with other alphabet numbers share nothing.

    Args:
      path: the zip to write; its folder must exist.
      alphabets: how many, numbered from `first_alphabet`.
      characters: characters in each alphabet.
      seed: 0 or more.
      writers: drawings of each character, at most 99.
      first_alphabet: number of the first alphabet.
    """
    with replacing(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        numbers = range(first_alphabet, first_alphabet + alphabets)
        for number in counted(numbers, "Generating glyphs", alphabets):
            drawn = draw_alphabet(number, characters=characters, writers=writers, seed=seed)
            for character, drawings in enumerate(drawn, start=1):
                folder = f"{path.stem}/Generated_{number:02}/character{character:02}"
                code = ((number - 1) * characters + character - 1) % 9999 + 1
                for writer, ink in enumerate(drawings, start=1):
                    entry = zipfile.ZipInfo(f"{folder}/{code:04}_{writer:02}.png", _EPOCH)
                    entry.create_system = 3
                    entry.external_attr = 0o644 << 16
                    archive.writestr(entry, encode_png(ink))
    _log.debug("%s: %d alphabets of %d characters", path, alphabets, characters)


def draw_alphabet(number: int, *, characters: int, writers: int, seed: int) -> Iterator[Flags]:
    """Draws an alphabet's characters: `bool[writers, SIDE, SIDE]` each, true where there is ink."""
    rng = _random(seed, number, 0)
    alphabet = make_alphabet(rng)
    hands = make_hands(rng, writers)
    zero, one = np.zeros(1), np.ones(1)
    neat = Hands(
        slant=zero,
        rotation=zero,
        size=one,
        aspect=one,
        offset=np.zeros((1, 2)),
        looseness=zero,
        tremor=zero,
        roundness=0.3 * one,
        pen=1.5 * one,
    )
    accepted: list[Floats] = []
    for character in range(1, characters + 1):
        rng = _random(seed, number, character)
        # The bar is lowered with every try, so that an alphabet of any length comes to an end.
        for attempt in range(200):
            strokes = make_character(rng, alphabet)
            sketch = _sketch(_render(rng, strokes, neat)[0])
            nearest = min((float(1.0 - (sketch * other).sum()) for other in accepted), default=1.0)
            if nearest > 0.45 * 0.98**attempt:
                break
        accepted.append(sketch)
        yield _render(rng, strokes, hands)


def encode_png(ink: Flags) -> bytes:
    """Encodes `bool[height, width]` as a 1-bit grey PNG, ink black on white.

    The pixels are the same everywhere; how well they are packed depends on the zlib in use.
    """
    height, width = ink.shape
    rows = np.packbits(~ink, axis=1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


class Stroke(NamedTuple):
    """Segments of a path: their `lengths`, the `turns` along them, the `corners` before them."""

    heading: float
    lengths: Floats
    turns: Floats
    corners: Floats


class Placed(NamedTuple):
    """A stroke in a character: its point `own` lies on point `on` of stroke `parent`, plus `gap`.

    `own` and `on` are shares of the stroke's length, 0 to 1. The first stroke has parent -1.
    """

    stroke: Stroke
    scale: float
    parent: int
    on: float
    own: float
    gap: tuple[float, float]


class Alphabet(NamedTuple):
    """The style that characters of an alphabet share."""

    stock: tuple[Stroke, ...]
    stroke_counts: Floats
    """Probability of 1, 2, 3 and 4 strokes, `float64[4]`."""
    joined: float
    """Share of strokes that touch another stroke."""
    flipped: float
    """Share of strokes that are mirrored, upright or sideways."""


class Hands(NamedTuple):
    """How each of n writers draws; every array is `float64[n]` unless noted."""

    slant: Floats
    rotation: Floats
    size: Floats
    aspect: Floats
    offset: Floats
    """Where on the page, in pixels, `float64[n, 2]`."""
    looseness: Floats
    """Spread of lengths, turns and joints from drawing to drawing."""
    tremor: Floats
    roundness: Floats
    """Share of a corner that is cut, 0 to 1."""
    pen: Floats
    """Pen radius in pixels."""


def _random(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    """Roughly normal numbers, within +-3.5, from uniform ones.

    Uniform doubles are the stream that NumPy has kept the same over versions and platforms.
    """
    numbers: Floats = (rng.random((*shape, 4)).sum(axis=-1) - 2.0) * np.sqrt(3.0)
    return numbers


def make_alphabet(rng: np.random.Generator) -> Alphabet:
    """Draws the style of an alphabet."""
    angular = rng.random()
    busy = rng.random()
    counts = np.array([0.7 - 0.5 * busy, 1.0, 0.6 + 0.5 * busy, 0.2 + 0.5 * busy])
    stock = tuple(_make_stroke(rng, angular) for _ in range(7 + int(rng.random() * 6)))
    return Alphabet(
        stock=stock,
        stroke_counts=counts / counts.sum(),
        joined=0.55 + 0.4 * rng.random(),
        flipped=0.15 + 0.35 * rng.random(),
    )


def _make_stroke(rng: np.random.Generator, angular: float) -> Stroke:
    segments = 1 + int(rng.random() * 2.6)
    compass = np.floor(rng.random() * 8) * (np.pi / 4)
    turns = np.zeros(segments)
    corners = np.zeros(segments)
    for i in range(segments):
        sign = 1.0 if rng.random() < 0.5 else -1.0
        kind = rng.random()
        if kind > 0.15 + 0.6 * angular:
            turns[i] = sign * np.pi * (0.35 + 0.85 * rng.random())
        elif kind > 0.1 + 0.5 * angular:
            turns[i] = sign * np.pi * (1.3 + 0.6 * rng.random())
        if i and rng.random() < 0.35 + 0.6 * angular:
            corners[i] = (1.0 if rng.random() < 0.5 else -1.0) * np.pi * (0.4 + 0.4 * rng.random())
    return Stroke(
        heading=compass + 0.15 * float(normal(rng, 1)[0]),
        lengths=0.35 + 0.75 * rng.random(segments),
        turns=turns,
        corners=corners,
    )


def make_character(rng: np.random.Generator, alphabet: Alphabet) -> tuple[Placed, ...]:
    """Puts strokes of the alphabet's stock together to a character."""
    count = 1 + int(np.searchsorted(np.cumsum(alphabet.stroke_counts), rng.random()))
    strokes: list[Placed] = []
    for i in range(min(count, 4)):
        stroke = alphabet.stock[int(rng.random() * len(alphabet.stock))]
        if rng.random() < alphabet.flipped:
            heading = np.pi - stroke.heading if rng.random() < 0.5 else -stroke.heading
            stroke = Stroke(heading, stroke.lengths, -stroke.turns, -stroke.corners)
        joined = rng.random() < alphabet.joined
        gap = (0.0, 0.0)
        if not joined:
            gap = ((rng.random() - 0.5) * 0.9, (rng.random() - 0.5) * 0.9)
        strokes.append(
            Placed(
                stroke=stroke,
                scale=1.0 if i == 0 else 0.45 + 0.6 * rng.random(),
                parent=int(rng.random() * i) if i else -1,
                on=np.floor(rng.random() * 5) / 4,
                own=np.floor(rng.random() * 3) / 2,
                gap=gap,
            )
        )
    return tuple(strokes)


def make_hands(rng: np.random.Generator, writers: int) -> Hands:
    """Draws the habits of the writers of one alphabet."""
    return Hands(
        slant=0.13 * normal(rng, writers),
        rotation=0.07 * normal(rng, writers),
        size=0.74 + 0.32 * rng.random(writers),
        aspect=np.exp(0.11 * normal(rng, writers)),
        offset=5.0 * normal(rng, writers, 2),
        looseness=0.6 + 0.8 * rng.random(writers),
        tremor=0.2 + 0.8 * rng.random(writers),
        roundness=rng.random(writers),
        pen=1.2 + 0.7 * rng.random(writers),
    )


def draw_paths(rng: np.random.Generator, character: tuple[Placed, ...], hands: Hands) -> Floats:
    """Draws a character once by each hand, before it is put on a page.

    Returns:
      `float64[writers, strokes, _STEPS, 2]`, x and y, in units of stroke height.
    """
    writers = len(hands.slant)
    loose = hands.looseness
    drawn: list[Floats] = []
    for placed in character:
        path = placed.scale * _draw_stroke(rng, placed.stroke, hands)
        path *= np.exp(0.07 * loose * normal(rng, writers))[:, None, None]
        own = path[:, round(placed.own * (_STEPS - 1)), None, :]
        target = np.zeros((writers, 1, 2))
        if placed.parent >= 0:
            slip = 0.05 * loose * normal(rng, writers)
            at = np.clip(placed.on + slip, 0.0, 1.0) * (_STEPS - 1)
            parent = drawn[placed.parent]
            target = parent[np.arange(writers), np.rint(at).astype(np.int64)][:, None, :]
            miss = 0.035 * loose[:, None] * normal(rng, writers, 2)
            target = target + np.asarray(placed.gap) + miss[:, None, :]
        drawn.append(path - own + target)
    return np.stack(drawn, axis=1)


def _draw_stroke(rng: np.random.Generator, stroke: Stroke, hands: Hands) -> Floats:
    writers, segments = len(hands.slant), len(stroke.lengths)
    loose = hands.looseness[:, None]
    lengths = stroke.lengths * np.exp(0.14 * loose * normal(rng, writers, segments))
    bend = 0.10 * loose * normal(rng, writers, segments)
    turns = stroke.turns * (1.0 + 0.10 * loose * normal(rng, writers, segments)) + bend
    corners = stroke.corners * (1.0 + 0.12 * loose * normal(rng, writers, segments))
    heading = stroke.heading + 0.09 * loose * normal(rng, writers, 1)

    total = lengths.sum(axis=1, keepdims=True)
    ends = np.cumsum(lengths, axis=1) / total
    starts = ends - lengths / total
    along = (np.arange(_STEPS - 1) + 0.5) / (_STEPS - 1)
    # A corner is turned over a short stretch; how short is the writer's habit.
    stretch = (0.02 + 0.14 * hands.roundness)[:, None]
    angle = np.repeat(heading, _STEPS - 1, axis=1)
    for i in range(segments):
        start, end = starts[:, i, None], ends[:, i, None]
        angle += turns[:, i, None] * np.clip((along - start) / (end - start), 0.0, 1.0)
        if i:
            angle += corners[:, i, None] * np.clip((along - start) / stretch + 0.5, 0.0, 1.0)
    angle += 0.12 * hands.tremor[:, None] * _waves(rng, writers, along)
    step = total / (_STEPS - 1)
    path = np.zeros((writers, _STEPS, 2))
    path[:, 1:, 0] = np.cumsum(step * np.cos(angle), axis=1)
    path[:, 1:, 1] = np.cumsum(step * np.sin(angle), axis=1)
    return path


def _waves(rng: np.random.Generator, writers: int, along: Floats) -> Floats:
    """Smooth noise along strokes, `float64[writers, len(along)]`, variance about 1."""
    frequencies = np.array([1.5, 3.0, 5.0, 8.0])
    waves = np.cos(2 * np.pi * (frequencies[:, None, None] * along + rng.random((4, writers, 1))))
    weights = normal(rng, 4, writers, 1)
    noise: Floats = (waves * weights).sum(axis=0) / np.sqrt(2.0)
    return noise


def _render(rng: np.random.Generator, character: tuple[Placed, ...], hands: Hands) -> Flags:
    """Draws a character by every hand: `bool[writers, SIDE, SIDE]`, true where there is ink."""
    return _stamp(_on_page(draw_paths(rng, character, hands), hands), hands.pen)


def _on_page(paths: Floats, hands: Hands) -> Floats:
    """Centres, scales, slants and moves paths; the result is in pixels, all of it on the page."""
    writers = len(paths)
    points = paths.reshape(writers, -1, 2)
    x, y = points[..., 0], points[..., 1]
    x = x - hands.slant[:, None] * y
    cos, sin = np.cos(hands.rotation)[:, None], np.sin(hands.rotation)[:, None]
    x, y = cos * x - sin * y, sin * x + cos * y
    x, y = x * hands.aspect[:, None], y / hands.aspect[:, None]
    points = np.stack([x, y], axis=-1)
    low, high = points.min(axis=1, keepdims=True), points.max(axis=1, keepdims=True)
    # Small characters stay somewhat smaller than large ones, as in real alphabets.
    extent = (high - low).max(axis=2, keepdims=True)
    scale = _INK_BOX * hands.size[:, None, None] / (0.75 * extent + 0.25 * np.maximum(extent, 1.2))
    margin = 4.0
    half = scale * (high - low) / 2
    room = SIDE / 2 - margin
    shrink = np.minimum(1.0, room / np.maximum(half.max(axis=2, keepdims=True), 1e-9))
    scale, half = scale * shrink, half * shrink
    slack = np.maximum(room - half, 0.0)
    centre = SIDE / 2 + np.clip(hands.offset[:, None, :], -slack, slack)
    page: Floats = (points - (low + high) / 2) * scale + centre
    return page.reshape(paths.shape)


def _stamp(paths: Floats, pen: Floats) -> Flags:
    """Draws a disc of radius `pen` (pixels, at most 2) at every point and between points."""
    writers = len(paths)
    shares = np.arange(_UPSAMPLING) / _UPSAMPLING
    start, end = paths[..., :-1, None, :], paths[..., 1:, None, :]
    dense = (start + (end - start) * shares[:, None]).reshape(writers, -1, 2)
    dense = np.concatenate([dense, paths[..., -1, :].reshape(writers, -1, 2)], axis=1)
    fixed = np.rint(dense * _GRID).astype(np.int64)
    radius = np.rint(pen * _GRID).astype(np.int64)[:, None]
    cell = fixed // _GRID
    offset = fixed - cell * _GRID - _GRID // 2
    ink = np.zeros((writers, SIDE, SIDE), np.bool_)
    who = np.broadcast_to(np.arange(writers)[:, None], cell.shape[:2])
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            x = dx * _GRID - offset[..., 0]
            y = dy * _GRID - offset[..., 1]
            hit = x * x + y * y <= radius * radius
            rows = np.clip(cell[..., 1][hit] + dy, 0, SIDE - 1)
            columns = np.clip(cell[..., 0][hit] + dx, 0, SIDE - 1)
            ink[who[hit], rows, columns] = True
    return ink


def _sketch(ink: Flags) -> Floats:
    """A character's rough shape, `float64[21, 21]` of norm 1: what looks alike is alike in it."""
    sketch = ink.reshape(21, 5, 21, 5).mean(axis=(1, 3))
    padded = np.pad(sketch, 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    blurred: Floats = windows.mean(axis=(2, 3))
    return blurred / np.linalg.norm(blurred)
