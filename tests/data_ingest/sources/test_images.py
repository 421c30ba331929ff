import io

import numpy as np
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
