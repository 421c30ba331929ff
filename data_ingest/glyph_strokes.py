"""Generated alphabets as pen strokes: what the characters are, and how a writer draws them.

A stroke is a path whose heading is piecewise linear: straight lines, arcs and loops joined
smoothly or by corners. An alphabet has a small stock of strokes; its characters put some of them
together, so that characters of one alphabet resemble each other (as in Lake et al. 2015, figure
3). A writer changes the lengths, turns and joints as well as slant, size and pen.

Lengths are in units of an alphabet's stroke height, angles in radians, y grows downwards.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS: Final = 64
"""Points on a stroke."""


@dataclass(frozen=True)
class Stroke:
    """Segments of a path: their `lengths`, the `turns` along them, the `corners` before them."""

    heading: float
    lengths: Floats
    turns: Floats
    corners: Floats


@dataclass(frozen=True)
class Placed:
    """A stroke in a character: its point `own` lies on point `on` of stroke `parent`, plus `gap`.

    `own` and `on` are shares of the stroke's length, 0 to 1. The first stroke has parent -1.
    """

    stroke: Stroke
    scale: float
    parent: int
    on: float
    own: float
    gap: tuple[float, float]


@dataclass(frozen=True)
class Alphabet:
    """The style that characters of an alphabet share."""

    stock: tuple[Stroke, ...]
    stroke_counts: Floats
    """Probability of 1, 2, 3 and 4 strokes, `float64[4]`."""
    joined: float
    """Share of strokes that touch another stroke."""
    flipped: float
    """Share of strokes that are mirrored, upright or sideways."""


@dataclass(frozen=True)
class Hands:
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
      `float64[writers, strokes, STEPS, 2]`, x and y, in units of stroke height.
    """
    writers = len(hands.slant)
    loose = hands.looseness
    drawn: list[Floats] = []
    for placed in character:
        path = placed.scale * _draw_stroke(rng, placed.stroke, hands)
        path *= np.exp(0.07 * loose * normal(rng, writers))[:, None, None]
        own = path[:, round(placed.own * (STEPS - 1)), None, :]
        target = np.zeros((writers, 1, 2))
        if placed.parent >= 0:
            slip = 0.05 * loose * normal(rng, writers)
            at = np.clip(placed.on + slip, 0.0, 1.0) * (STEPS - 1)
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
    along = (np.arange(STEPS - 1) + 0.5) / (STEPS - 1)
    # A corner is turned over a short stretch; how short is the writer's habit.
    stretch = (0.02 + 0.14 * hands.roundness)[:, None]
    angle = np.repeat(heading, STEPS - 1, axis=1)
    for i in range(segments):
        start, end = starts[:, i, None], ends[:, i, None]
        angle += turns[:, i, None] * np.clip((along - start) / (end - start), 0.0, 1.0)
        if i:
            angle += corners[:, i, None] * np.clip((along - start) / stretch + 0.5, 0.0, 1.0)
    angle += 0.12 * hands.tremor[:, None] * _waves(rng, writers, along)
    step = total / (STEPS - 1)
    path = np.zeros((writers, STEPS, 2))
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
