import base64
import io
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_ingest.sources.glyphs import encode_png
from data_ingest.sources.images import ImageRejected, stored_form


def png(side: int = 8) -> bytes:
    return encode_png(np.eye(side, dtype=np.bool_))


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(stream, "JPEG")
    return stream.getvalue()


def test_plain_images_stay_as_they_are() -> None:
    for data in (png(4), png(105), jpeg()):
        assert stored_form(data) == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no image" * 9, "not an image"),
        (png(3), "too small"),
        (png(4097), "too large"),
        (png() + bytes(16 * 2**20), "too large"),
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
