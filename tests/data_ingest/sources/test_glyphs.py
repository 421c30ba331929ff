import hashlib
import io
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_ingest.sources.glyphs import SIDE, draw_alphabet, encode_png, write_glyphs
from data_ingest.sources.images import stored_form
from data_ingest.sources.layout import list_images
from tests.data_ingest.tiny_images import read_image

Alphabet = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@pytest.fixture(scope="module")
def alphabets() -> list[Alphabet]:
    return [
        np.stack(list(draw_alphabet(number, characters=20, writers=20, seed=1)))
        for number in (1, 2)
    ]


def test_the_pixels_of_a_seed_never_change() -> None:
    drawn = np.stack(list(draw_alphabet(3, characters=4, writers=5, seed=7)))
    digest = hashlib.sha256(np.packbits(drawn).tobytes()).hexdigest()
    assert digest[:16] == "a82d200ff9f8d935"


def test_a_zip_of_glyphs_is_in_omniglots_layout(tmp_path: Path) -> None:
    path = tmp_path / "images_evaluation.zip"
    write_glyphs(path, alphabets=2, characters=3, writers=4, seed=1, first_alphabet=9)
    images = list_images(path)
    assert len(images) == 2 * 3 * 4
    assert {image.group for image in images} == {"Generated_09", "Generated_10"}
    assert {image.class_name for image in images} >= {"Generated_09/character01"}
    assert {image.writer for image in images} == {1, 2, 3, 4}
    assert images[0].member.startswith("images_evaluation/Generated_09/character01/")
    for image in images:
        assert stored_form(read_image(image)) == read_image(image)
    decoded = Image.open(io.BytesIO(read_image(images[0])))
    assert (decoded.size, decoded.mode) == ((105, 105), "1")


def test_the_same_arguments_write_the_same_bytes_and_leave_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_glyphs(tmp_path / name / "g.zip", alphabets=1, characters=2, writers=3, seed=5)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["g.zip"]
    assert (tmp_path / "a/g.zip").read_bytes() == (tmp_path / "b/g.zip").read_bytes()


def test_a_failed_write_leaves_neither_a_zip_nor_a_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "g.zip").mkdir()
    with pytest.raises(OSError, match=r"g\.zip"):
        write_glyphs(tmp_path / "g.zip", alphabets=1, characters=1, writers=1, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["g.zip"]


def test_seeds_and_alphabet_numbers_give_other_characters() -> None:
    def first(number: int, seed: int) -> bytes:
        drawn = next(iter(draw_alphabet(number, characters=1, writers=2, seed=seed)))
        return drawn.tobytes()

    assert len({first(1, 1), first(2, 1), first(1, 2)}) == 3


def test_encoded_pixels_come_back_black_on_white() -> None:
    ink = np.random.default_rng(0).random((13, 21)) < 0.3
    decoded = np.asarray(Image.open(io.BytesIO(encode_png(ink))))
    np.testing.assert_array_equal(decoded, ~ink)


def test_every_drawing_has_ink_and_a_white_border(alphabets: list[Alphabet]) -> None:
    for alphabet in alphabets:
        share = alphabet.mean(axis=(2, 3))
        assert share.min() > 0.005
        assert share.max() < 0.25
        inner = alphabet.copy()
        inner[:, :, 1:-1, 1:-1] = False
        assert not inner.any()


def test_writers_differ(alphabets: list[Alphabet]) -> None:
    for character in (character for alphabet in alphabets for character in alphabet):
        assert len({drawing.tobytes() for drawing in character}) == len(character)


def nearest_is_right(alphabets: list[Alphabet], *, size: int, trials: int = 400) -> float:
    """Share of within-alphabet trials that the nearest image in blurred pixels gets right."""
    rng = np.random.default_rng(1)
    right = 0
    for trial in range(trials):
        alphabet = alphabets[trial % len(alphabets)]
        query_writer, support_writer = rng.choice(alphabet.shape[1], 2, replace=False)
        answer = rng.integers(len(alphabet))
        blocks = alphabet.reshape(*alphabet.shape[:2], size, SIDE // size, size, SIDE // size)
        small = blocks[:, [query_writer, support_writer]].mean(axis=(3, 5))
        distances = ((small[:, 1] - small[answer, 0]) ** 2).sum(axis=(1, 2))
        right += int(distances.argmin() == answer)
    return right / trials


def test_raw_pixels_do_not_tell_characters_apart(alphabets: list[Alphabet]) -> None:
    assert nearest_is_right(alphabets, size=SIDE) < 0.4


def test_coarse_shape_does_tell_something(alphabets: list[Alphabet]) -> None:
    assert nearest_is_right(alphabets, size=7) > 0.25


def test_a_disk_that_fills_up_is_named_and_left_clean(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match=r"g\.zip"):
            write_glyphs(tmp_path / "g.zip", alphabets=1, characters=2, writers=9, seed=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
