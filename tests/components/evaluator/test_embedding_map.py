"""The map of embeddings: what is alike lies together, each image in a place of its own."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from components.evaluator.embedding_map import draw_map
from tests.pair_records import drawing, png


def colours(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """The frame of each place, `uint8[rows, columns, 4]`."""
    return np.asarray(picture.convert("RGBA"))[1::48, 1::48]


def test_classes_that_are_apart_lie_apart_and_no_image_hides_another() -> None:
    by_class = {f"g/{number}": list(range(12 * number, 12 * number + 12)) for number in range(2)}
    rng = np.random.default_rng(0)
    vectors = np.repeat([[0.0] * 4, [50.0] * 4], 12, axis=0) + rng.normal(size=(24, 4))
    drawn = draw_map(
        by_class, lambda images: vectors[list(images)], lambda image: png(drawing(image // 12, 1))
    )
    assert drawn is not None
    assert (drawn.classes, drawn.images) == (2, 24)
    with Image.open(io.BytesIO(drawn.picture)) as picture:
        frames = colours(picture)
    taken = np.argwhere(frames[..., 3] > 128)
    assert len(taken) == 24
    # Blue frames are of the first class, light blue ones of the second.
    first = np.array([frames[row, column, 0] < 100 for row, column in taken])
    assert first.sum() == 12
    between = taken[first].mean(axis=0) - taken[~first].mean(axis=0)
    assert np.linalg.norm(between) > taken[first].std(axis=0).mean()


def test_too_few_images_make_no_map() -> None:
    by_class = {"g/a": [0, 1], "g/b": [2, 3]}
    assert draw_map(by_class, lambda images: np.zeros((4, 2)), lambda _: b"") is None
    assert draw_map({}, lambda images: np.zeros((0, 2)), lambda _: b"") is None
