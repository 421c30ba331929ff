"""Which images look turned, by others that are not."""

import numpy as np
import pytest
from PIL import Image

from data_ingest.spans.turns import STROKES, TURNS, looks_turned, stroke_directions, turned


def arrow(seed: int) -> Image.Image:
    """An L of varying place and length."""
    draw = np.random.default_rng(seed)
    gray = np.full((96, 96), 255, np.uint8)
    top, left, length = draw.integers(10, 30, 3)
    gray[top : top + 30 + length, left : left + 4] = 0
    gray[top + 26 + length : top + 30 + length, left : left + 20] = 0
    return Image.fromarray(gray)


def strokes(images: list[Image.Image]) -> np.ndarray:
    return np.array([stroke_directions(image) for image in images])


@pytest.mark.parametrize("quarters", TURNS)
def test_strokes_turn_as_the_image_does(quarters: int) -> None:
    image = arrow(1)
    really = Image.fromarray(np.rot90(np.asarray(image), quarters))
    expected = stroke_directions(really)
    found = turned(strokes([image]), quarters)[0]
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert np.abs(stroke_directions(image) - expected).max() > 0.1


def test_shares_are_those_of_all_edges() -> None:
    found = stroke_directions(arrow(1))
    assert (found.shape, found.dtype) == (STROKES, np.float32)
    assert (found**2).sum() == pytest.approx(1)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (96, 96)])
def test_a_blank_image_has_no_strokes(size: tuple[int, int]) -> None:
    assert not stroke_directions(Image.new("L", size, 200)).any()


@pytest.mark.parametrize("quarters", TURNS)
def test_turned_images_look_turned_and_others_do_not(quarters: int) -> None:
    old, new = (strokes([arrow(seed) for seed in seeds]) for seeds in (range(40), range(40, 60)))
    units = np.arange(40) % 8
    straight, known = looks_turned(new, old, units, quarters)
    other, _ = looks_turned(turned(new, quarters), old, units, quarters)
    assert straight.mean() < 0.1
    assert known.mean() < 0.1
    assert other.mean() > 0.9


def test_no_unit_is_judged_by_itself() -> None:
    """One of six lies the other way round: by the others it is turned."""
    old = strokes([arrow(seed) for seed in range(30)])
    units = np.repeat(np.arange(6), 5)
    old[units == 3] = turned(old[units == 3], 2)
    _, known = looks_turned(old[:1], old, units, 2)
    assert known[units == 3].all()
    assert known[units != 3].mean() < 0.5


def test_images_without_strokes_look_like_nothing() -> None:
    blank = np.zeros((8, *STROKES), np.float32)
    for judged in looks_turned(blank, blank, np.arange(8), 1):
        assert not judged.any()
