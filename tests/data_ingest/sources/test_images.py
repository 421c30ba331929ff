import base64
import errno
import io
import mmap
import os
import sys
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_ingest.sources.glyphs import encode_png
from data_ingest.sources.images import (
    MAX_FILE_BYTES,
    ImageRejected,
    stored_form,
    stored_form_of,
    upright,
)
from data_ingest.sources.kinds import KINDS, MAX_SIDE, Kind, form_of
from serving.saved_model.contract import MIN_CONTRAST
from serving.saved_model.decoding import decode_gray
from tests.image_damage import damaged
from tests.image_variants import Levels, Variant, pillow_view, variants
from tests.png_encoder import GRAY, assemble, chunks

REASONS = {
    *("empty", "not an image", "too large", "too small", "truncated", "unreadable"),
    *("nothing is drawn on it", "needs the heic extra"),
}
DRAWING = form_of("drawing", MAX_SIDE)
DAMAGED = int(os.environ.get("DAMAGED_IMAGES", "4000"))
"""How many damaged images are tried; more take longer and find more."""


def png(side: int = 8) -> bytes:
    return encode_png(np.eye(side, dtype=np.bool_))


def jpeg() -> bytes:
    return in_file(Image.effect_noise((64, 64), 60), "JPEG")


def in_file(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


@cache
def scene(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Coloured patches of all sizes, blurred, with noise."""
    rng = np.random.default_rng(8)
    size = (width, height)
    scene = Image.new("RGB", size)
    for side in (3, 7, 15, 40):
        patches = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        scene = Image.blend(scene, patches.resize(size, Image.Resampling.BICUBIC), 0.5)
    noise = Image.effect_noise(size, 30).convert("RGB")
    return Image.blend(scene, noise, 0.2).convert(mode)


def pixels(data: bytes) -> npt.NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)


def test_plain_images_stay_as_they_are() -> None:
    for data in (png(4), png(105), jpeg()):
        assert stored_form(data) == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no image" * 9, "not an image"),
        (png(3), "too small"),
        (in_file(Image.new("1", (2**13, 2**13 + 1)), "PNG"), "too large"),
        (png() + bytes(MAX_FILE_BYTES), "too large"),
        (png(105)[:60], "truncated"),
        (png(105)[:-12], "truncated"),
        (jpeg()[:-200], "truncated"),
        (jpeg()[:10], "truncated"),
        (png()[:20] + b"\x7f" + png()[21:], "unreadable"),
    ],
)
def test_unsound_images_are_rejected_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageRejected) as rejected:
        stored_form(data)
    assert rejected.value.reason == reason


@given(position=st.integers(8, 200), flip=st.integers(1, 255))
def test_a_changed_byte_in_a_png_is_always_noticed(position: int, flip: int) -> None:
    data = bytearray(encode_png(np.random.default_rng(1).random((40, 40)) < 0.5))
    data[position] ^= flip
    with pytest.raises(ImageRejected):
        stored_form(bytes(data))


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [
        *(("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("TIFF", "LA")),
        *(("PNG", mode) for mode in ("RGB", "1", "P", "RGBA", "I;16")),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_larger_images_are_reduced_to_what_they_look_like_and_smaller_ones_stay(
    file_format: str, mode: str, kind: Kind
) -> None:
    form = form_of(kind)
    original = scene(840, 600, "RGB" if mode == "I;16" else mode)
    if mode == "I;16":
        original = Image.fromarray(np.asarray(original.convert("L"), np.uint16) << 8)
    data = in_file(original, file_format)
    stored = stored_form(data, form)
    image = Image.open(io.BytesIO(stored))
    is_lossy = kind == "photo" or file_format in ("JPEG", "WEBP")
    assert image.format == ("JPEG" if is_lossy else "PNG")
    assert image.size == (form.max_side, round(form.max_side * 600 / 840))
    looks = upright(Image.open(io.BytesIO(data))).convert("RGB").resize(image.size)
    assert np.abs(pixels(stored) - np.asarray(looks)).mean() < (9 if mode in "1P" else 5)
    assert stored_form(stored, form) == stored == stored_form(stored)
    if file_format == "PNG" and mode in ("RGB", "1"):
        assert stored_form(data) == data
        assert stored_form(data, form_of(kind, max_side=840)) == data


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_photo_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = in_file(scene(900, 600), "JPEG", exif=exif)
    stored = stored_form(data, form_of("photo"))
    looks = upright(Image.open(io.BytesIO(data)))
    size = (256, 171) if orientation < 5 else (171, 256)
    assert np.abs(pixels(stored) - np.asarray(looks.resize(size))).mean() < 4


def test_photos_of_any_camera_are_reduced() -> None:
    for size in ((8000, 6000), (12_000, 3000)):
        page = Image.linear_gradient("L").resize(size).convert("RGB")
        stored = stored_form(in_file(page, "JPEG", quality=50), form_of("photo"))
        assert max(Image.open(io.BytesIO(stored)).size) == 256


def test_a_reduced_image_is_neither_too_thin_nor_blank() -> None:
    thin = in_file(scene(4000, 20), "PNG")
    specks = Image.new("L", (4000, 4000), "white")
    specks.putpixel((9, 9), 0)
    for data, reason in ((thin, "too small"), (in_file(specks, "PNG"), "nothing is drawn on it")):
        with pytest.raises(ImageRejected, match=reason):
            stored_form(data, form_of("photo"))


def test_an_image_in_memory_is_reduced_and_stays_what_it_was() -> None:
    image = scene(900, 600)
    stored = stored_form_of(image, form_of("photo"))
    assert (image.size, Image.open(io.BytesIO(stored)).size) == ((900, 600), (256, 171))


def test_colours_of_one_brightness_are_seen_on_photos_only() -> None:
    page = np.zeros((40, 40, 3), np.uint8) + np.array([100, 128, 100], np.uint8)
    page[10:30, 10:30] = [128, 113, 100]
    for file_format in ("PNG", "WEBP"):
        data = in_file(Image.fromarray(page), file_format, lossless=True)
        assert pixels(stored_form(data, form_of("photo"))).tolist() == page.tolist()
        with pytest.raises(ImageRejected, match="nothing is drawn on it"):
            stored_form(data, form_of("drawing"))


def test_dark_photos_of_few_levels_are_taken() -> None:
    for levels, taken in ((8, True), (7, False)):
        dark = np.tile(np.arange(levels + 1, dtype=np.uint8) + 20, (12, 2))
        if taken:
            stored_form(in_file(Image.fromarray(dark), "PNG"), form_of("photo"))
            continue
        with pytest.raises(ImageRejected, match="nothing is drawn on it"):
            stored_form(in_file(Image.fromarray(dark), "PNG"), form_of("photo"))


# The drawing of `the_drawing`, encoded by libheif and x265 (HEVC Main Still Picture, 4:2:0).
HEIC = base64.b64decode(
    b"AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAXVtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAA"
    b"AAAAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABmQABAAAAAAAAAEsAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAA"
    b"AAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA9WlwcnAAAADVaXBjbwAAAHBodmNDAQQIAAAAn/gAAAAAHvAA/Pz4"
    b"+AAADwNgAAEAF0ABDAH//wQIAAADAJ/4AAADAAAeugJAYQABACVCAQEECAAAAwCf+AAAAwAAHsCCBBZbq5Ka5sCA"
    b"AAAMgAAAAwCEYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    b"cAAAADAAAAABAAAAIAAAAAH////wAAAAAv///+AAAAACAAAADnBpeGkAAAAAAQgAAAAYaXBtYQAAAAAAAAABAAEF"
    b"gQIDBYQAAABTbWRhdAAAAEcoAa4np61Hc52+gF7ec19nq0CgboAAjDWcsepQ4fc4ItGCvliHaf2vnxaZLCrQ+xlp"
    b"KHBAQoULZ1uxbr/WwO6fNnW7yeiYNg=="
)


def the_drawing() -> npt.NDArray[np.uint8]:
    page = np.full((32, 48), 255, np.uint8)
    page[4:16, 6:12] = 0
    page[20:24, :30] = 0
    return page


def test_heic_is_read_as_it_looks() -> None:
    image = Image.open(io.BytesIO(stored_form(HEIC)))
    assert (image.format, image.mode) == ("PNG", "L")
    assert np.abs(np.asarray(image).astype(int) - the_drawing()).max() <= 8


def test_damaged_heic_is_unreadable() -> None:
    for data in (HEIC[:-100], HEIC[:40]):
        with pytest.raises(ImageRejected, match=r"truncated|unreadable"):
            stored_form(data)


def test_without_its_extra_heic_is_rejected_by_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(ImageRejected, match="needs the heic extra"):
        stored_form(HEIC)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def decode(image: tf.Tensor) -> tf.Tensor:
    return decode_gray(image)[..., 0]


def decoded(stored: bytes) -> Levels:
    """What the exported graph sees of an image, `[H, W]` in 0 to 255; not a blank page."""
    levels = np.asarray(decode(tf.constant(stored)), np.float64)
    assert np.ptp(levels) >= MIN_CONTRAST
    return levels * 255


def shown(stored: bytes) -> Levels:
    """What Pillow makes of a stored form: of a JPEG its own brightness, before it was coloured."""
    image = Image.open(io.BytesIO(stored))
    image.draft("L", image.size)
    return np.asarray(image.convert("L"), np.float64)


def judged(data: bytes) -> bytes | str:
    """The stored form of an image, or why there is none."""
    try:
        return stored_form(data, DRAWING)
    except ImageRejected as rejected:
        return rejected.reason


@pytest.mark.parametrize("variant", variants(), ids=lambda variant: variant.name)
def test_an_image_is_rejected_or_decoded_as_it_looks(variant: Variant) -> None:
    stored = judged(variant.data)
    if isinstance(stored, str):
        small = variant.looks is not None and min(variant.looks.shape) < 4
        assert stored in REASONS
        assert variant.blank or variant.broken or small
        return
    assert not variant.blank
    assert stored_form(variant.data, DRAWING) == stored == stored_form(stored)
    looks = pillow_view(variant.data) if variant.looks is None else variant.looks
    levels = decoded(stored)
    np.testing.assert_allclose(levels, shown(stored), atol=1.01)
    if stored.startswith(b"\xff\xd8"):
        # Brightness is stored apart from colour; in few pixels their colour could not be shown.
        assert np.abs(levels - looks).mean() < 2
    else:
        np.testing.assert_allclose(levels, looks, atol=1.5)


def test_a_colour_space_does_not_change_how_an_image_looks_to_the_model() -> None:
    plain = {variant.name: variant.data for variant in variants()}
    shades = decoded(stored_form(plain["png with text behind its pixels"]))
    for name in ("gAMA", "sRGB", "cHRM"):
        stored = stored_form(plain[f"png with {name}"])
        assert name.encode() not in stored
        np.testing.assert_array_equal(decoded(stored), shades)


def test_a_progressive_jpeg_that_lacks_scans_is_stored_as_what_there_is() -> None:
    (data,) = (one.data for one in variants() if one.name == "jpeg 4:2:0 progressive")
    assert stored_form(data) == data
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    lacking = data[: scans[-1]] + b"\xff\xd9"
    assert stored_form(lacking).startswith(b"\x89PNG")


def test_whatever_is_wrong_with_an_image_only_what_is_decoded_alike_is_stored() -> None:
    images = [variant.data for variant in variants() if len(variant.data) < 20_000]
    stored = 0
    for number in range(DAMAGED):
        rng = np.random.default_rng([13, number])
        data = damaged(rng, images[rng.integers(len(images))])
        form = judged(data)
        if isinstance(form, str):
            assert form in REASONS
            continue
        stored += 1
        np.testing.assert_allclose(decoded(form), shown(form), atol=1.01, err_msg=f"image {number}")
        assert stored_form(form) == form, f"image {number}"
        if data[:2] not in (b"II", b"MM"):
            # Of a damaged TIFF, libtiff may show what was in memory.
            assert stored_form(data, DRAWING) == form, f"image {number}"
    assert DAMAGED / 10 < stored < DAMAGED / 2


def test_an_image_is_not_called_unreadable_for_want_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(mmap, "mmap", fail)
    for data in (HEIC[:-100], jpeg()[:-200], b"no image" * 9):
        with pytest.raises(MemoryError):
            stored_form(data)


@pytest.mark.parametrize("kind", ["drawing", "photo"])
@pytest.mark.parametrize("depth", [1, 8])
def test_a_gray_png_is_judged_without_decoding_as_it_is_with(depth: int, kind: Kind) -> None:
    form = form_of(kind)
    limit = form.min_contrast
    for high in {0, 1} if depth == 1 else {0, 1, limit - 1, limit, 255}:
        samples = np.zeros((21, 13, 1), np.int64)
        # The last pixel of the last row, whose byte holds more bits than pixels.
        samples[-1, -1] = high
        parts = chunks(samples, depth, GRAY)
        alone = assemble(parts)
        with_text = assemble([parts[0], (b"tEXt", b"Comment\0x"), *parts[1:]])
        answers = []
        for data in (alone, with_text):
            try:
                answers.append(stored_form(data, form) == data)
            except ImageRejected as rejected:
                answers.append(str(rejected) != "nothing is drawn on it")
        drawn = high * (255 if depth == 1 else 1) >= limit
        assert answers == [drawn, drawn]
    thin = assemble(chunks(np.eye(8, 3, dtype=np.int64)[..., np.newaxis], depth, GRAY))
    with pytest.raises(ImageRejected, match="too small"):
        stored_form(thin, form)
