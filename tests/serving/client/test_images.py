"""Encoding what people have of an image."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PillowImage

from serving.client.images import encode_image, encode_images
from serving.client.types import ClientError, InvalidImage

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([(), (1,), (3,)])).map(
    lambda parts: (parts[0], parts[1], *parts[2])
)


def decoded(data: bytes) -> np.ndarray:
    with PillowImage.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def squeezed(array: np.ndarray) -> np.ndarray:
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


@given(hnp.arrays(np.uint8, SHAPES))
def test_an_array_of_bytes_comes_back_from_the_png_unchanged(array: np.ndarray) -> None:
    np.testing.assert_array_equal(decoded(encode_image(array)), squeezed(array))


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32)))
def test_floats_become_the_nearest_of_256_levels(array: np.ndarray) -> None:
    difference = decoded(encode_image(array)) / 255.0 - squeezed(array)
    assert np.abs(difference).max() <= 0.5 / 255 + 1e-6


def test_arrays_need_not_be_contiguous() -> None:
    array = np.arange(48, dtype=np.uint8).reshape(6, 8)[::-2, ::2]
    np.testing.assert_array_equal(decoded(encode_image(array)), array)


def test_bools_become_black_and_white() -> None:
    np.testing.assert_array_equal(
        decoded(encode_image(np.array([[True, False]]))), np.array([[255, 0]])
    )


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), np.int64),
        np.zeros((2, 2), complex),
        np.array([[0.0, 1.01]]),
        np.array([[0.0, -0.01]]),
        np.array([[0.0, np.nan]]),
        np.array([[0.0, np.inf]]),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_arrays_that_are_no_image_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InvalidImage):
        encode_image(array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pil_images_of_every_usual_mode_are_encoded(mode: str) -> None:
    image = PillowImage.effect_noise((7, 5), 80).convert("RGB").convert(mode)
    assert decoded(encode_image(image)).shape[:2] == (5, 7)


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_pil_images_without_a_fixed_range_are_refused(mode: str) -> None:
    with pytest.raises(InvalidImage, match="convert"):
        encode_image(PillowImage.new(mode, (2, 2)))


def test_files_and_bytes_go_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"\xff\xd8\xff anything \0")
    assert encode_image(path) == encode_image(str(path)) == path.read_bytes()
    for kind in (bytes, bytearray, memoryview):
        assert encode_image(kind(b"abc\0")) == b"abc\0"


def test_empty_files_and_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    with pytest.raises(InvalidImage, match=r"x\.png is empty"):
        encode_image(tmp_path / "x.png")
    with pytest.raises(InvalidImage, match="no bytes"):
        encode_image(b"")


def test_a_missing_file_is_an_os_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        encode_image(tmp_path / "missing.png")


@pytest.mark.parametrize("thing", [None, 3, 2.5, object()])
def test_other_things_are_refused_by_their_type(thing: object) -> None:
    with pytest.raises(InvalidImage, match=type(thing).__name__):
        encode_image(thing)  # type: ignore[arg-type]


def test_several_images_keep_their_order_and_a_batch_array_is_several() -> None:
    batch = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 1)
    assert list(encode_images(batch)) == [encode_image(batch[0]), encode_image(batch[1])]
    assert list(encode_images([b"a", bytearray(b"b")])) == [b"a", b"b"]
    assert list(encode_images(name for name in (b"a", b"b"))) == [b"a", b"b"]
    assert list(encode_images(b"ab")) == [b"ab"]


def test_the_place_of_a_refused_image_is_named() -> None:
    with pytest.raises(InvalidImage, match="image 1: the image has no bytes"):
        list(encode_images([b"a", b"", b"c"]))


def test_a_refused_image_is_an_error_of_the_client_and_a_value_error() -> None:
    assert issubclass(InvalidImage, ClientError)
    assert issubclass(InvalidImage, ValueError)
