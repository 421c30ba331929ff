"""The contact sheet."""

import io

import numpy as np
import pytest
from PIL import Image

from components.trainer.contact_sheet import contact_sheet
from serving.saved_model.contract import ColorMode, Preprocessing


def half_red() -> bytes:
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[:, 8:24] = (230, 10, 10)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def share_of_red(pixels: np.ndarray) -> float:
    red, green = pixels[..., 0].astype(int), pixels[..., 1].astype(int)
    return float((red - green > 100).mean())


@pytest.mark.parametrize(("color_mode", "times"), [("rgb", 2.0), ("grayscale", 1.0)])
def test_beside_each_image_is_what_the_network_sees(color_mode: ColorMode, times: float) -> None:
    once = share_of_red(_sheet(Preprocessing(16), count=5))
    assert once > 0.02
    found = share_of_red(_sheet(Preprocessing(16, color_mode=color_mode), count=5))
    assert found == pytest.approx(times * once, rel=0.15)


def test_a_sheet_grows_by_lines() -> None:
    one, two = (_sheet(Preprocessing(16), count=count) for count in (4, 5))
    assert one.shape[1] == two.shape[1]
    assert one.shape[0] < two.shape[0]


def _sheet(preprocessing: Preprocessing, *, count: int) -> np.ndarray:
    with Image.open(io.BytesIO(contact_sheet([half_red()] * count, preprocessing))) as sheet:
        return np.asarray(sheet.convert("RGB"))
