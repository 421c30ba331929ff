"""Encoding what people have of an image."""

import inspect
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as PillowImage

from data_ingest.sources.images import MAX_FILE_BYTES, stored_form
from data_ingest.sources.kinds import ANY_KIND, MAX_SIDE
from serving.client.images import _ADVICE, encode_image, encode_images
from serving.client.rest import Client
from serving.client.types import ClientError, InvalidImage
from tests.drawn_face import drawn_face
from tests.image_variants import pillow_view, variants
from tests.pair_records import drawing, png
from tests.serving.client.fake_server import FakeModel, rest_server

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([(), (1,), (3,)])).map(
    lambda parts: (parts[0], parts[1], *parts[2])
)


def decoded(data: bytes) -> np.ndarray:
    with PillowImage.open(io.BytesIO(data)) as image:
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
    before = image.copy()
    assert decoded(encode_image(image)).shape[:2] == (5, 7)
    assert (image, image.info) == (before, before.info)


def test_of_pil_images_of_16_bits_the_upper_8_are_sent() -> None:
    values = np.array([[0, 300, 40_000, 65_535]] * 4, np.uint16)
    for image in (PillowImage.fromarray(values), PillowImage.fromarray(values.astype(np.int32))):
        np.testing.assert_array_equal(decoded(encode_image(image)), values >> 8)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pil_images_without_a_fixed_range_are_refused(mode: str) -> None:
    image = PillowImage.new(mode, (4, 4), 70_000)
    with pytest.raises(InvalidImage, match=f"PIL mode {mode} has no fixed range: convert"):
        encode_image(image)


LOOKS = {
    variant.name: variant
    for variant in variants()
    if variant.name.startswith("jpeg orientation")
    or variant.name
    in {
        *("png gray 16 bits", "png indexed 2 bits tRNS", "png with eXIf 6 big-endian"),
        *("jpeg CMYK", "webp orientation 6", "webp with alpha", "bmp 24 bits"),
        *("tiff 16 bits", "tiff orientation 6", "gif animated", "pgm", "ppm"),
    }
}
"""Of every kind one: `stored_form` is tested on all."""


@pytest.mark.parametrize("name", sorted(LOOKS))
def test_files_are_sent_as_a_viewer_shows_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(LOOKS[name].data)
    sent = encode_image(path)
    assert sent == encode_image(path.read_bytes()) == encode_image(sent)
    assert sent.startswith((b"\x89PNG", b"\xff\xd8"))
    np.testing.assert_allclose(pillow_view(sent), LOOKS[name].looks, atol=2)
    with PillowImage.open(path) as image:
        np.testing.assert_allclose(decoded(encode_image(image)), decoded(sent), atol=2)


def test_plain_files_and_bytes_go_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(drawing(1, 1)))
    assert encode_image(path) == encode_image(str(path)) == path.read_bytes()
    for kind in (bytes, bytearray, memoryview):
        assert encode_image(kind(path.read_bytes())) == path.read_bytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty; "),
        (b"not an image", "not an image; give a PNG, JPEG, WebP"),
        (png(drawing(1, 1))[:-20], "truncated; "),
        (png(np.full((9, 9), 7, np.uint8)), "nothing is drawn on it; "),
        (png(np.eye(3, dtype=np.uint8) * 255), "too small; 4 pixels"),
        (bytes(MAX_FILE_BYTES + 1), "too large; 64 MiB"),
    ],
    ids=lambda value: value[:12].decode("ascii", "replace") if isinstance(value, bytes) else "",
)
def test_what_cannot_be_used_is_refused_by_name_and_reason(
    data: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(InvalidImage, match=f"^INVALID_ARGUMENT: {re.escape(str(path))}: {reason}"):
        encode_image(path)
    with pytest.raises(InvalidImage, match=f": image 1: {reason}"):
        list(encode_images([png(drawing(1, 1)), data]))
    with pytest.raises(InvalidImage, match=f": image_b: {reason}"):
        list(encode_images(data, name="image_b"))


def test_names_of_files_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\n\x1b[31m.png"
    path.touch()
    with pytest.raises(InvalidImage, match=r"a\\n\\x1b\[31m\.png: empty"):
        encode_image(path)


def test_every_reason_has_advice() -> None:
    text = inspect.getdoc(stored_form) or ""
    reasons = set(re.findall(r"`([a-z][a-z ]+)`", text.partition("Raises:")[2]))
    assert reasons == set(_ADVICE)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (PillowImage.new("RGB", (30, 30), "white"), "nothing is drawn on it"),
        (PillowImage.new("L", (0, 30)), "too small"),
        (PillowImage.new("L", (2**13, 2**13 + 1)), "too large"),
        (PillowImage.linear_gradient("L").resize((4, 2 * MAX_SIDE)), "too small"),
    ],
)
def test_pil_images_are_judged_as_files_are(image: PillowImage.Image, reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason):
        encode_image(image)


def test_a_missing_file_is_an_os_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        encode_image(tmp_path / "missing.png")


def test_pil_images_that_cannot_be_read_any_more_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(drawing(1, 1)))
    with PillowImage.open(path) as closed:
        pass
    path.write_bytes(path.read_bytes()[:-60])
    for image in (closed, PillowImage.open(path)):
        with pytest.raises(InvalidImage, match="the PIL image cannot be read: "):
            encode_image(image)


@pytest.mark.parametrize("thing", [None, 3, 2.5, object()])
def test_other_things_are_refused_by_their_type(thing: object) -> None:
    with pytest.raises(InvalidImage, match=type(thing).__name__):
        encode_image(thing)  # type: ignore[arg-type]


def test_several_images_keep_their_order_and_a_batch_array_is_several() -> None:
    batch = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 1)
    assert list(encode_images(batch)) == [encode_image(batch[0]), encode_image(batch[1])]
    a, b = png(drawing(1, 1)), png(drawing(2, 1))
    assert list(encode_images([a, bytearray(b)])) == [a, b]
    assert list(encode_images(name for name in (a, b))) == [a, b]
    assert list(encode_images(a)) == [a]


def test_a_refused_image_is_an_error_of_the_client_and_a_value_error() -> None:
    assert issubclass(InvalidImage, ClientError)
    assert issubclass(InvalidImage, ValueError)


def test_of_whatever_people_have_the_face_alone_is_sent(tmp_path: Path) -> None:
    photo, path = drawn_face(), tmp_path / "photo.png"
    photo.save(path)
    face = stored_form(path.read_bytes(), ANY_KIND._replace(crop="face"))
    for image in (path, path.read_bytes(), photo, np.asarray(photo)):
        assert encode_image(image, crop="face") == face
    # A crop of a crop would be another picture.
    assert encode_image(encode_image(path, crop="face"), crop="face") == face
    model = FakeModel()
    with rest_server(model) as address, Client(address, crop="face") as client:
        assert client.embed([path])[0, 0] == len(face)
        assert client.score(path, photo).score.shape == (1,)
        with pytest.raises(InvalidImage, match="image 1: no face found"):
            client.embed([path, np.tile(np.arange(9, dtype=np.uint8) * 20, (9, 1))])
