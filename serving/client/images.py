"""Encodes paths, bytes, arrays and PIL images as the files that a server takes."""

import io
import os
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from serving.client.types import InvalidImage

if TYPE_CHECKING:
    from PIL import Image as PillowImage

Image: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | npt.NDArray[Any] | PillowImage.Image"
)
"""A path; a PNG or JPEG file's bytes; an array `[H, W]`, `[H, W, 1]` or `[H, W, 3]` of uint8, bool
or floats in [0, 1]; or a PIL image."""
Images: TypeAlias = "Image | Iterable[Image]"
"""One image or several."""

COLOUR_TYPES: Final = {1: 0, 3: 2}
"""PNG's colour type, gray or RGB, by number of channels (PNG specification, 11.2.2)."""
PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
"""PIL modes that a PNG keeps and the server's decoder reads."""


def encode_image(image: Image) -> bytes:
    """The image as an encoded file. Bytes and files go unchanged: the server judges them.

    Raises:
      InvalidImage: the type, shape or value range is none of those of `Image`, or it is empty.
      OSError: the path cannot be read.
    """
    if isinstance(image, (str, os.PathLike)):
        data = Path(image).read_bytes()
        if not data:
            raise InvalidImage(f"{os.fspath(image)} is empty")
        return data
    if isinstance(image, (bytes, bytearray, memoryview)):
        if not len(image):
            raise InvalidImage("the image has no bytes")
        return bytes(image)
    if isinstance(image, np.ndarray):
        return encode_png(_as_uint8(image))
    pillow = sys.modules.get("PIL.Image")  # not imported: then this is no image of it
    if pillow is not None and isinstance(image, pillow.Image):
        return _encode_pillow(image)
    raise InvalidImage(
        f"an image is a path, bytes, a numpy array or a PIL image, not {type(image).__name__}"
    )


def encode_images(images: Images) -> Iterator[bytes]:
    """One image or several, as encoded files. An array of four dimensions is several.

    Raises:
      InvalidImage: one of them is not an image; the message names its place.
      OSError: a path cannot be read.
    """
    if _is_single(images):
        yield encode_image(cast(Image, images))
        return
    for place, image in enumerate(cast(Iterable[Image], images)):
        try:
            encoded = encode_image(image)
        except InvalidImage as error:
            raise InvalidImage(f"image {place}: {error.message}") from error
        yield encoded


def _is_single(images: object) -> bool:
    """Whether this is one image and not an iterable of several."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    known = (str, os.PathLike, bytes, bytearray, memoryview)
    return isinstance(images, known) or not isinstance(images, Iterable)


def encode_png(pixels: npt.NDArray[np.uint8], *, level: int = 1) -> bytes:
    """A PNG file of `uint8[H, W]` (gray) or `uint8[H, W, 3]` (RGB). Needs no imaging library."""
    height, width = pixels.shape[:2]
    channels = pixels.size // (height * width)
    # Each row begins with its filter type; 0 is none.
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), level)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _as_uint8(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise InvalidImage(
            f"an array is an image if its shape is [H, W] or [H, W, 3], not {list(array.shape)}"
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        array = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        # Written so that NaN is refused as well.
        if not (array.min() >= 0 and array.max() <= 1):
            raise InvalidImage(
                f"floats of an image are in [0, 1], not [{array.min()}, {array.max()}]; "
                "divide by 255, or use uint8"
            )
        pixels: npt.NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
        return pixels
    raise InvalidImage(
        f"an array is an image if its type is uint8, bool or a float, not {array.dtype}"
    )


def _encode_pillow(image: "PillowImage.Image") -> bytes:
    if 0 in image.size:
        raise InvalidImage(f"the image has no pixels: its size is {image.size}")
    if image.mode not in PNG_MODES:
        if image.mode in ("F", "I") or image.mode.startswith("I;"):
            raise InvalidImage(
                f"PIL mode {image.mode} has no fixed range: convert it to 'L' or 'RGB' first"
            )
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
