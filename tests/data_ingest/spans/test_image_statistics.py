"""Figures of single images: known values, and what must not change them."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from data_ingest.spans.image_figures import ImageStatistics, bin_of, image_statistics


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def page(*, side: int = 40, ink: tuple[slice, slice] | None = None) -> Image.Image:
    """White paper with a black rectangle: rows, columns."""
    gray = np.full((side, side), 255, np.uint8)
    if ink is not None:
        gray[ink] = 0
    return Image.fromarray(gray)


def test_a_black_rectangle_has_the_figures_that_one_can_count() -> None:
    found = image_statistics(encoded(page(ink=(slice(10, 20), slice(20, 40)))))
    assert found == ImageStatistics(
        width=40,
        height=40,
        form="PNG gray",
        paper="light",
        brightness=pytest.approx(1 - 200 / 1600),
        contrast=pytest.approx(np.sqrt(0.125 * 0.875)),
        sharpness=1.0,
        ink=200 / 1600,
        roughness=(2 * 10 + 2 * 20) / 200,
        ink_x=30 / 40,
        ink_y=15 / 40,
        ink_width=20 / 40,
        ink_height=10 / 40,
    )


def test_inverted_colours_are_the_same_ink_on_other_paper() -> None:
    image = page(ink=(slice(10, 20), slice(12, 30)))
    inverted = Image.fromarray(255 - np.asarray(image))
    one, other = (image_statistics(encoded(each)) for each in (image, inverted))
    assert (one.paper, other.paper) == ("light", "dark")
    for figure in ("ink", "roughness", "ink_x", "ink_y", "ink_width", "ink_height"):
        assert getattr(one, figure) == getattr(other, figure)


def test_an_image_without_ink_is_blank() -> None:
    found = image_statistics(encoded(page()))
    assert (found.paper, found.ink, found.roughness) == ("blank", 0.0, 0.0)
    assert found.sharpness == 0.0
    assert (found.ink_x, found.ink_width) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("image", "kind", "form"),
    [
        (page().convert("1"), "PNG", "PNG 1-bit"),
        (page().convert("RGB"), "PNG", "PNG colour"),
        (page(), "PNG", "PNG gray"),
        (page(), "JPEG", "JPEG gray"),
        (page().convert("RGB"), "JPEG", "JPEG colour"),
    ],
)
def test_how_an_image_is_stored_is_told(image: Image.Image, kind: str, form: str) -> None:
    assert image_statistics(encoded(image, kind)).form == form


def test_a_larger_image_of_the_same_drawing_has_about_the_same_figures() -> None:
    image = page(side=100, ink=(slice(20, 60), slice(30, 50)))
    one = image_statistics(encoded(image))
    other = image_statistics(encoded(image.resize((1000, 1000), Image.Resampling.NEAREST)))
    assert (other.width, other.ink_x, other.ink_height) == (
        1000,
        pytest.approx(one.ink_x, abs=0.02),
        pytest.approx(one.ink_height, abs=0.02),
    )


def test_blur_takes_sharpness_whatever_contrast_and_thickness() -> None:
    for thickness in (2, 10):
        image = page(ink=(slice(10, 10 + thickness), slice(5, 30)))
        faded = image.point(lambda value: 200 if value else 90)
        for one in (image, faded):
            assert image_statistics(encoded(one)).sharpness == pytest.approx(1.0)
            blurred = one.filter(ImageFilter.GaussianBlur(1))
            assert 0.1 < image_statistics(encoded(blurred)).sharpness < 0.4


@pytest.mark.parametrize("side", [1, 2, 300])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_photos_of_any_size_have_a_sharpness(side: int, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, *shape), np.uint8)
    found = image_statistics(encoded(Image.fromarray(pixels), "JPEG"))
    assert 0 <= found.sharpness <= 1
    assert bin_of("sharpness", found.sharpness)


@given(st.integers(0, 2**32 - 1), st.integers(4, 20), st.integers(4, 20), st.floats(0, 1))
def test_every_figure_is_in_its_range_and_has_a_name(
    seed: int, width: int, height: int, dark: float
) -> None:
    noise = np.random.default_rng(seed).random((height, width)) >= dark
    found = image_statistics(encoded(Image.fromarray(noise.astype(np.uint8) * 255)))
    assert (found.width, found.height) == (width, height)
    for figure in ("brightness", "ink", "ink_x", "ink_y", "ink_width", "ink_height"):
        assert 0 <= getattr(found, figure) <= 1
    assert 0 <= found.contrast <= 0.5
    assert found.sharpness == (1.0 if noise.any() and not noise.all() else 0.0)
    assert 0 <= found.roughness <= 4
    for name, value in found._asdict().items():
        assert bin_of(name, value)


@given(st.floats(1e-4, 1), st.floats(1e-4, 1))
def test_ranges_are_in_the_order_of_their_values(one: float, other: float) -> None:
    for figure in ("brightness", "ink_x", "contrast"):
        low, high = sorted((one / 2, other / 2))
        assert bin_of(figure, low) <= bin_of(figure, high)
    low, high = sorted((round(4000 * one) + 4, round(4000 * other) + 4))
    assert int(bin_of("width", low)) <= int(bin_of("width", high))
