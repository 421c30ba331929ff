"""Decoding inside the graph, and what is refused."""

import io
import struct
import time
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_ingest.sources.images import MAX_BYTES
from data_ingest.sources.kinds import MAX_SIDE
from serving.saved_model.contract import Contrast, Framing, Polarity, Preprocessing
from serving.saved_model.preprocessing import decode_images


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    target = io.BytesIO()
    image.save(target, kind)
    return target.getvalue()


@cache
def decoder(preprocessing: Preprocessing) -> Callable[[tf.Tensor], tf.Tensor]:
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def decode(batch: tf.Tensor) -> tf.Tensor:
        return decode_images(batch, preprocessing)

    return decode


def decoded(
    *images: bytes, size: int = 8, polarity: Polarity = "auto", framing: Framing = "whole"
) -> np.ndarray:
    preprocessing = Preprocessing(size, polarity, framing)
    return decoder(preprocessing)(tf.constant(list(images), tf.string)).numpy()


def cross(mode: str = "L", side: int = 24, paper: int = 255, ink: int = 0) -> Image.Image:
    pixels = np.full((side, side), paper, np.uint8)
    pixels[side // 3 : 2 * side // 3] = ink
    pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:] = (paper,) * 4
    return Image.fromarray(pixels).convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + checksum


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_kind_of_png_gives_the_same_drawing(mode: str) -> None:
    image = cross(mode)
    np.testing.assert_allclose(decoded(encoded(image)), decoded(encoded(cross())), atol=1e-6)


def test_a_jpeg_gives_nearly_the_drawing_of_the_png() -> None:
    jpeg, png = decoded(encoded(cross(), "jpeg"), encoded(cross()))
    np.testing.assert_allclose(jpeg, png, atol=0.05)


def test_pixels_are_averages_over_the_area_they_cover_with_ink_one() -> None:
    pixels = np.full((105, 105), 255, np.uint8)
    pixels[30:33, 60:62] = 0
    result = decoded(encoded(Image.fromarray(pixels)), size=35)
    expected = np.zeros((1, 35, 35, 1))
    expected[0, 10, 20] = 6 / 9
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_dark_and_light_paper_give_the_same_drawing_unless_polarity_is_fixed() -> None:
    dark_on_light = encoded(cross())
    light_on_dark = encoded(cross(paper=0, ink=255))
    one, other = decoded(dark_on_light, light_on_dark)
    np.testing.assert_array_equal(one, other)
    (fixed,) = decoded(light_on_dark, polarity="light_on_dark")
    np.testing.assert_array_equal(fixed, one)
    (inverted,) = decoded(light_on_dark, polarity="dark_on_light")
    np.testing.assert_allclose(inverted, 1 - one, atol=1e-6)


def test_transparent_pixels_are_paper() -> None:
    pixels = np.zeros((24, 24, 4), np.uint8)
    pixels[8:16, 3:-3, 3] = 255
    np.testing.assert_allclose(
        decoded(encoded(Image.fromarray(pixels))), decoded(encoded(cross())), atol=1e-6
    )


def test_an_oblong_image_keeps_its_proportions() -> None:
    pixels = np.full((12, 24), 255, np.uint8)
    pixels[3:9, 6:18] = 0
    square = np.full((24, 24), 255, np.uint8)
    square[6:18] = pixels
    np.testing.assert_allclose(
        decoded(encoded(Image.fromarray(pixels))), decoded(encoded(Image.fromarray(square)))
    )


def test_batches_may_be_empty_and_may_mix_sizes_and_kinds() -> None:
    assert decoded().shape == (0, 8, 8, 1)
    mixed = decoded(encoded(cross()), encoded(cross(side=9), "jpeg"), encoded(cross(side=300)))
    assert mixed.shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "neither PNG nor JPEG"),
        (b"hello", "neither PNG nor JPEG"),
        (b"GIF89a" + bytes(100), "neither PNG nor JPEG"),
        (encoded(cross())[:20], "truncated"),
        (encoded(cross())[:60], "truncated PNG"),
        (encoded(cross(), "jpeg")[:4], "Invalid JPEG"),
        (encoded(cross(), "jpeg")[:200], "Invalid JPEG"),
        (encoded(cross(), "jpeg")[:-40], "JPEG"),
        (png_header(11_000, 11_000), f"1 to {MAX_SIDE} pixels"),
        (png_header(MAX_SIDE + 1, 1), f"1 to {MAX_SIDE} pixels"),
        (png_header(1, 2**31 + 1), f"1 to {MAX_SIDE} pixels"),
        (png_header(0, 10), f"1 to {MAX_SIDE} pixels"),
        (encoded(Image.new("L", (MAX_SIDE + 1, 8)), "jpeg"), f"1 to {MAX_SIDE} pixels"),
        (encoded(cross()) + bytes(MAX_BYTES), "more than"),
    ],
    ids=[
        *("empty", "text", "gif", "half a header", "half a png", "jpeg marker", "half a jpeg"),
        *("jpeg without end", "11000x11000", "too wide", "too high", "no width"),
        *("too wide a jpeg", "too many bytes"),
    ],
)
def test_a_hostile_image_is_an_invalid_argument(image: bytes, reason: str) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        decoded(encoded(cross()), image)


def test_an_enormous_png_is_refused_without_being_decoded() -> None:
    enormous = encoded(Image.new("1", (11_000, 11_000)))
    decoded(encoded(cross()))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        with pytest.raises(tf.errors.InvalidArgumentError):
            decoded(enormous)
        seconds.append(time.perf_counter() - started)
    # Decoding it would take 0.3 s and 121 MB.
    assert min(seconds) < 0.05


def drawing(top: int, left: int, *, height: int = 20, width: int = 30, side: int = 100) -> bytes:
    """A triangle, dark on light, in a box of that place and size."""
    pixels = np.full((side, side), 255, np.uint8)
    for row in range(height):
        pixels[top + row, left : left + 1 + row * (width - 1) // (height - 1)] = 0
    return encoded(Image.fromarray(pixels))


def test_framed_by_its_ink_a_drawing_is_the_same_wherever_it_lies() -> None:
    places = [drawing(top, left) for top, left in ((40, 35), (0, 0), (80, 70), (13, 61))]
    here, *elsewhere = decoded(*places, size=20, framing="ink")
    for there in elsewhere:
        np.testing.assert_allclose(there, here, atol=1e-5)
    whole = decoded(*places, size=20, framing="whole")
    assert np.abs(whole[0] - whole[1]).max() > 0.5


def test_the_window_is_four_fifths_of_the_image_about_the_middle_of_the_ink() -> None:
    # Pixels of the window of 80 are 4 wide: the box of 20 by 30 covers 5 by 7.5 of them.
    framed = decoded(drawing(0, 0), size=20, framing="ink")[0, ..., 0]
    covered = sum(1 + row * 29 // 19 for row in range(20)) / 16
    np.testing.assert_allclose(framed.sum(), covered, rtol=0.01)
    # It reaches from 7.5 to 12.5 and from 6.25 to 13.75, and half a pixel further, faintly.
    ink = np.argwhere(framed > 0.002)
    assert ink.min(axis=0).tolist() == [7, 5]
    assert ink.max(axis=0).tolist() == [12, 14]


def test_ink_larger_than_the_window_is_still_seen_whole() -> None:
    image = drawing(0, 5, height=100, width=94)
    framed = decoded(image, size=53, framing="ink")[0, ..., 0]
    ink = np.argwhere(framed > 0.01)
    # 100 of 106 pixels: 1.5 of the 53 on either side are paper.
    assert ink.min(axis=0)[0] == 1
    assert ink.max(axis=0)[0] == 51
    assert not framed[0].any()
    assert not framed[-1].any()


def test_small_images_are_framed_too() -> None:
    pixels = np.full((1, 2), 255, np.uint8)
    pixels[0, 0] = 0
    framed = decoded(encoded(Image.fromarray(pixels)), polarity="dark_on_light", framing="ink")
    assert np.isfinite(framed).all()
    assert framed.max() > 0.5


def test_images_are_decoded_on_the_cpu_even_where_there_is_a_gpu() -> None:
    graph = decoder(Preprocessing(8, framing="ink")).get_concrete_function().graph.as_graph_def()
    # The results of a function have the device of its caller.
    results = ("Identity", "NoOp")
    functions = graph.library.function
    nodes = [n for function in functions for n in function.node_def if n.name not in results]
    assert {"DecodePng", "ScaleAndTranslate"} <= {node.op for node in nodes}
    assert all("CPU" in node.device for node in nodes)


def seen(*images: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    batch = [encoded(image) for image in images]
    return decoder(preprocessing)(tf.constant(batch, tf.string)).numpy()


IN_COLOUR = Preprocessing(8, color_mode="rgb")


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_in_colour_an_image_is_seen_as_it_is(kind: str) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = (200, 100, 50), (10, 240, 120)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind, quality=100, subsampling=0)
    (found,) = decoder(IN_COLOUR)(tf.constant([target.getvalue()])).numpy()
    assert found.shape == (8, 8, 3)
    np.testing.assert_allclose(255 * found[:, :3], np.full((8, 3, 3), (200, 100, 50)), atol=3)
    np.testing.assert_allclose(255 * found[:, 5:], np.full((8, 3, 3), (10, 240, 120)), atol=3)


def test_in_colour_light_and_dark_are_not_swapped() -> None:
    dark, light = seen(cross(), cross(paper=0, ink=255), preprocessing=IN_COLOUR)
    np.testing.assert_allclose(light, 1 - dark, atol=1e-5)


def test_what_is_around_an_oblong_photograph_has_the_colours_of_its_edge() -> None:
    pixels = np.zeros((16, 8, 3), np.uint8)
    pixels[:, :4], pixels[:, 4:] = (250, 0, 0), (0, 0, 250)
    (found,) = 255 * seen(Image.fromarray(pixels), preprocessing=IN_COLOUR)
    np.testing.assert_allclose(found[:, :3], np.full((8, 3, 3), (250, 0, 0)), atol=1)
    np.testing.assert_allclose(found[:, 5:], np.full((8, 3, 3), (0, 0, 250)), atol=1)


def test_colours_alone_are_contrast_enough_where_colour_is_seen() -> None:
    pixels = np.full((16, 16, 3), (150, 100, 100), np.uint8)
    pixels[4:12, 4:12] = (96, 128, 96)  # as bright
    image = Image.fromarray(pixels)
    assert seen(image, preprocessing=IN_COLOUR).shape == (1, 8, 8, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="nothing is drawn on it"):
        seen(image, preprocessing=Preprocessing(8))
    with pytest.raises(tf.errors.InvalidArgumentError, match="nothing is drawn on it"):
        seen(Image.new("RGB", (16, 16), "red"), preprocessing=IN_COLOUR)


def stroke(side: int = 200, paper: int = 255, ink: int = 0, at: int = 60) -> Image.Image:
    """A stroke 80 wide and 20 high."""
    pixels = np.full((side, 2 * side), paper, np.uint8)
    pixels[at : at + 20, at : at + 80] = ink
    return Image.fromarray(pixels)


@pytest.mark.parametrize("contrast", ["as_is", "paper"])
def test_ink_may_be_measured_against_its_paper(contrast: Contrast) -> None:
    how = Preprocessing(20, "dark_on_light", "whole", aspect=2.0, contrast=contrast)
    grey = np.random.default_rng(1).integers(-8, 9, (200, 400))
    faint = Image.fromarray((np.asarray(stroke(paper=180, ink=100)) + grey).astype(np.uint8))
    strong, weak = seen(stroke(), faint, preprocessing=how)
    assert strong.shape == (20, 40, 1)
    if contrast == "paper":
        np.testing.assert_allclose(weak, strong, atol=0.15)
        assert weak[-1].max() == 0
    else:
        assert np.abs(weak - strong).max() > 0.25


def test_in_a_box_ink_is_as_large_wherever_it_lies_and_whatever_its_size() -> None:
    how = Preprocessing(20, "dark_on_light", "box", aspect=2.0)
    one, moved = seen(stroke(at=60), stroke(at=90), preprocessing=how)
    np.testing.assert_allclose(one, moved, atol=1e-6)
    small = stroke().resize((200, 100), Image.Resampling.BOX)
    assert np.abs(seen(small, preprocessing=how)[0] - one).mean() < 0.05
    # 80 by 20 in 40 by 20 pixels, with a margin.
    assert one.sum() == pytest.approx(40 * 10 / 1.06**2, rel=0.1)


def test_a_speck_of_dust_does_not_change_the_box() -> None:
    how = Preprocessing(20, "dark_on_light", "box", aspect=2.0)
    dusty = stroke()
    dusty.putpixel((390, 195), 0)
    one, other = seen(stroke(), dusty, preprocessing=how)
    assert np.abs(one - other).mean() < 0.05


def test_a_card_tells_what_the_network_sees() -> None:
    how = Preprocessing(20, "dark_on_light", "box", aspect=2.0, contrast="paper")
    assert Preprocessing.of_card({"other": 1, **how.as_card()}) == how
    early = {"image_size": 28, "polarity": "auto", "framing": "ink"}
    assert Preprocessing.of_card(early) == Preprocessing(28, "auto", "ink")
