"""What the graph, saved and loaded as a server has it, makes of every variant of an image."""

import contextlib
import io
import resource
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from serving.saved_model.contract import MIN_CONTRAST, Preprocessing
from serving.saved_model.decoding import MAX_CHUNKS, decode_gray
from serving.saved_model.loader import LoadedModel
from serving.saved_model.preprocessing import decode_images
from tests.image_variants import Levels, Variant, drawing, encoded, tiff_header, variants
from tests.png_encoder import GRAY, Chunk, assemble, chunk, chunks

UNKNOWN_FORMAT = "image refused: neither PNG nor JPEG"
CMYK = "image refused: CMYK JPEG: convert it to RGB"
BLANK = r"image refused: nothing is drawn on it \(contrast 0\.0\d, at least 0\.0625 is needed\)"
REFUSED = {
    "jpeg CMYK": CMYK,
    "jpeg YCCK": CMYK,
    "png with a chunk longer than the file (broken)": "image refused: truncated PNG",
    "png without its end (broken)": "image refused: truncated PNG",
    "png cut off in its pixels (broken)": "image refused: truncated PNG",
    "png cut off in its header (broken)": "image refused: truncated PNG header",
    "png of its magic alone (broken)": "image refused: truncated PNG header",
    "png of zero width (broken)": "image refused: sides must be 1 to 4096",
    "jpeg cut off in its header (broken)": "Invalid JPEG data",
    "jpeg of its magic alone (broken)": "Invalid JPEG data",
}


def refusal(variant: Variant) -> str | None:
    """How the graph's message reads, as a pattern; None where it decodes the variant."""
    if variant.kind not in ("png", "jpeg"):
        return UNKNOWN_FORMAT
    by_kind = {"png": "Invalid PNG", "jpeg": r"jpeg::Uncompress failed\. Invalid JPEG data"}
    return REFUSED.get(variant.name, by_kind[variant.kind] if variant.broken else None)


DECODED = [variant for variant in variants() if refusal(variant) is None]
NOT_DECODED = [variant for variant in variants() if refusal(variant) is not None]


class Graph(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def gray(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"gray": decode_gray(image)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def drawings(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"drawings": decode_images(images, Preprocessing(8))}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    folder = tmp_path_factory.mktemp("decoding")
    graph = Graph()
    signatures = {"gray": graph.gray, "drawings": graph.drawings}
    tf.saved_model.save(graph, str(folder), signatures=signatures)
    with LoadedModel(folder) as model:
        yield model


@pytest.fixture(scope="module")
def decode(loaded: LoadedModel) -> Callable[[bytes], Levels]:
    """From a file to its brightness, 0 to 255."""

    def levels(data: bytes) -> Levels:
        gray = loaded.run("gray", {"image": np.array(data, object)})["gray"]
        return gray[..., 0].astype(np.float64) * 255

    return levels


def luminance(data: bytes) -> Levels:
    """The luminance that a JPEG holds, by Pillow: its colours may be clipped, so their brightness
    may differ from it by a few levels."""
    image = Image.open(io.BytesIO(data))
    image.draft("L", image.size)
    return np.asarray(ImageOps.exif_transpose(image).convert("L")).astype(np.float64)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("variant", DECODED, ids=lambda variant: variant.name)
def test_every_png_and_jpeg_is_seen_as_viewers_show_it(
    decode: Callable[[bytes], Levels], variant: Variant
) -> None:
    found = decode(variant.data)
    assert variant.looks is not None
    assert found.shape == variant.looks.shape
    if variant.kind == "png":  # libpng cuts off where Pillow rounds
        np.testing.assert_allclose(found, variant.looks, atol=1)
    else:
        np.testing.assert_allclose(found, luminance(variant.data), atol=0.01)
        np.testing.assert_allclose(found.mean(), variant.looks.mean(), atol=2)


@pytest.mark.parametrize("variant", NOT_DECODED, ids=lambda variant: variant.name)
def test_all_others_are_refused_in_words(
    decode: Callable[[bytes], Levels], variant: Variant
) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=refusal(variant)):
        decode(variant.data)


@pytest.mark.parametrize(
    "variant", [v for v in DECODED if v.blank], ids=lambda variant: variant.name
)
def test_a_page_without_ink_is_refused(loaded: LoadedModel, variant: Variant) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=BLANK):
        loaded.run("drawings", {"images": [DECODED[0].data, variant.data]})


def test_whatever_is_drawn_on_is_accepted(loaded: LoadedModel) -> None:
    drawn_on = [variant.data for variant in DECODED if not variant.blank]
    assert loaded.run("drawings", {"images": drawn_on})["drawings"].shape[0] == len(drawn_on)
    page = np.full((9, 9, 1), 255)
    page[3:5] -= int(np.ceil(255 * MIN_CONTRAST))
    loaded.run("drawings", {"images": [assemble(chunks(page, 8, GRAY))]})


IHDR, *PIXELS = chunks(np.asarray(drawing().convert("L"))[..., np.newaxis], 8, GRAY)
TEXT = (b"tEXt", b"a\0b")


def test_many_chunks_are_walked_and_too_many_refused_soon(
    decode: Callable[[bytes], Levels],
) -> None:
    decode(assemble([IHDR, *[TEXT] * (MAX_CHUNKS - 4), PIXELS[0], (b"PLTE", bytes(6)), PIXELS[1]]))
    endless = assemble([IHDR, *[TEXT] * 500_000, *PIXELS])
    palettes = assemble([IHDR, *[(b"tRNS", bytes(768))] * 4000, *PIXELS])
    for data, message in {endless: "more than 4096 chunks", palettes: "out of place"}.items():
        start = time.process_time()
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"image refused: PNG.*{message}"):
            decode(data)
        assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([IHDR, PIXELS[0], TEXT, *PIXELS], "out of place"),
        ([IHDR, PIXELS[0], (b"ABCD", b""), PIXELS[1]], "out of place"),
        ([IHDR, (b"ABCD", bytes(10_000)), *PIXELS], "out of place"),
        ([IHDR, PIXELS[0]], "truncated PNG"),
    ],
)
def test_a_png_that_is_not_laid_out_as_one_is_refused(
    decode: Callable[[bytes], Levels], parts: list[Chunk], message: str
) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"image refused: .*{message}"):
        decode(assemble(parts))


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iCCP", b"sPLT", b"IDAT", b"PLTE"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_chunk_that_claims_gigabytes_gets_none(
    decode: Callable[[bytes], Levels], name: bytes, behind: bool
) -> None:
    claim = b"\x7f\xff\xff\xff" + name
    parts = [assemble([IHDR]), claim, chunk(*PIXELS[0]), chunk(*PIXELS[1])]
    if behind:
        parts = [assemble([IHDR, PIXELS[0]]), claim, chunk(*PIXELS[1])]
    before = peak_kilobytes()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image refused: .*PNG"):
        decode(b"".join(parts))
    assert peak_kilobytes() - before < 2**20


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


PHOTO = encoded(drawing(16, 24), "jpeg")


@settings(max_examples=40)
@given(exif=st.binary(max_size=80) | st.binary(max_size=40).map(tiff_header(6)[:9].__add__))
@example(exif=tiff_header(6, offset=0xFFFFFFFF))
@example(exif=tiff_header(0xFFFF, ">", entries=0xFFFF))
@example(exif=b"II")
def test_no_exif_whatever_keeps_an_image_from_being_decoded(
    decode: Callable[[bytes], Levels], exif: bytes
) -> None:
    segment = b"Exif\0\0" + exif
    length = (len(segment) + 2).to_bytes(2, "big")
    jpeg = decode(PHOTO[:2] + b"\xff\xe1" + length + segment + PHOTO[2:])
    ihdr, *pixels = chunks(np.asarray(drawing(16, 24)), 8, 2)
    png = decode(assemble([ihdr, (b"eXIf", exif), *pixels]))
    assert sorted(jpeg.shape) == sorted(png.shape) == [16, 24]


@settings(max_examples=40)
@given(at=st.integers(8, 150), byte=st.integers(0, 255))
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_damaged_header_is_decoded_or_an_invalid_argument(
    decode: Callable[[bytes], Levels], kind: str, at: int, byte: int
) -> None:
    image = drawing(16, 24).quantize(5) if kind == "png" else drawing(16, 24)
    data = bytearray(encoded(image, kind, exif=b"Exif\0\0" + tiff_header(6)))
    data[at] = byte
    with contextlib.suppress(tf.errors.InvalidArgumentError):
        assert decode(bytes(data)).size
