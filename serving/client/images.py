"""Encodes paths, bytes, arrays and PIL images as the files that a server takes."""

import os
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from data_ingest.errors import shown
from serving.client.types import InvalidImage

if TYPE_CHECKING:
    from PIL import Image as PillowImage

    from data_ingest.sources.images import ImageRejected
    from data_ingest.sources.kinds import Crop, Form

Image: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | npt.NDArray[Any] | PillowImage.Image"
)
"""A path; a file's bytes; an array `[H, W]`, `[H, W, 1]` or `[H, W, 3]` of uint8, bool or floats in
[0, 1]; or a PIL image. Files are PNG, JPEG, WebP, BMP, TIFF, GIF, PGM, PPM, AVIF or HEIC."""
Images: TypeAlias = "Image | Iterable[Image]"
"""One image or several."""

COLOUR_TYPES: Final = {1: 0, 3: 2}
"""PNG's colour type, gray or RGB, by number of channels (PNG specification, 11.2.2)."""
_ADVICE: Final = {
    "empty": "it has no bytes",
    "not an image": "give a PNG, JPEG, WebP, BMP, TIFF, GIF, PGM, PPM or AVIF file",
    "needs the heic extra": "`pip install pi-heif`, or convert it to JPEG",
    "too large": "64 MiB and 8192 x 8192 pixels are the most: make it smaller",
    "too small": "4 pixels a side are the least",
    "truncated": "the end of the file is missing: get it again",
    "unreadable": "the file is damaged: get it again, or save it anew with another program",
    "no face found": "give a photo in which the face is larger, upright and seen from the front",
    "several faces": "cut out the one that is meant, or give a photo of one person",
    "needs the faces extra": "`pip install 'siamese-oneshot[faces]'`",
    "nothing is drawn on it": "dark and light are hardly apart: give another picture",
}
"""What to do about an image, by the reason why it is rejected."""


class Cropped(bytes):
    """An encoded image that is a crop already, of which no crop is made."""


def encode_image(image: Image, *, crop: "Crop | None" = None) -> bytes:
    """The image as an encoded file that every version of the model sees as it looks.

    Files and bytes go unchanged where they are plain PNG or JPEG. What else can be read becomes
    one of them: turned by its EXIF, on white where it is transparent, the first of several frames.
    Arrays become PNG as they are, without Pillow.

    Args:
      image: what is to be encoded.
      crop: 'face': its one face is cut out and aligned, see `face_crop`; None: it stays whole.

    Raises:
      InvalidImage: it is none of those of `Image`, nothing is drawn on it, or it has no face or
        several; the message names the path, the reason and what to do.
      OSError: the path cannot be read.
    """
    if crop is not None and isinstance(image, Cropped):
        return image
    if isinstance(image, (str, os.PathLike)):
        from data_ingest.sources.images import MAX_FILE_BYTES

        with Path(image).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        try:
            return _stored_form(data, crop)
        except InvalidImage as error:
            raise InvalidImage(f"{shown(os.fspath(image))}: {error.message}") from error
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _stored_form(bytes(image), crop)
    if isinstance(image, np.ndarray):
        encoded = encode_png(_as_uint8(image))
        return encoded if crop is None else _stored_form(encoded, crop)
    pillow = sys.modules.get("PIL.Image")  # not imported: then this is no image of it
    if pillow is not None and isinstance(image, pillow.Image):
        return _encode_pillow(image, crop)
    raise InvalidImage(
        f"an image is a path, bytes, a numpy array or a PIL image, not {type(image).__name__}"
    )


def encode_images(
    images: Images, *, name: str = "image", crop: "Crop | None" = None
) -> Iterator[bytes]:
    """One image or several, as encoded files. An array of four dimensions is several.

    Args:
      images: in the order in which they come out.
      name: what they are to the request, for messages.
      crop: see `encode_image`.

    Raises:
      InvalidImage: one of them is not an image; the message names its place.
      OSError: a path cannot be read.
    """
    single = _is_single(images)
    several = [cast(Image, images)] if single else cast(Iterable[Image], images)
    for place, image in enumerate(several):
        try:
            encoded = encode_image(image, crop=crop)
        except InvalidImage as error:
            place_of_it = name if single else f"{name} {place}"
            raise InvalidImage(f"{place_of_it}: {error.message}") from error
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


def _encode_pillow(image: "PillowImage.Image", crop: "Crop | None") -> bytes:
    from data_ingest.sources.images import ImageRejected, stored_form_of

    try:
        return _of_crop(stored_form_of(image, _form(crop)), crop)
    except ImageRejected as error:
        if error.reason == "unreadable" and image.mode in ("F", "I"):
            raise InvalidImage(
                f"PIL mode {image.mode} has no fixed range: convert it to 'L' or 'RGB' first"
            ) from error
        if error.__cause__ is not None:  # its file is read only now, and may be closed already
            raise InvalidImage(f"the PIL image cannot be read: {error.__cause__}") from error
        raise _invalid(error) from error


def _stored_form(data: bytes, crop: "Crop | None") -> bytes:
    # Pillow takes its time to be imported, which who sends arrays is spared.
    from data_ingest.sources.images import ImageRejected, stored_form

    try:
        return _of_crop(stored_form(data, _form(crop)), crop)
    except ImageRejected as error:
        raise _invalid(error) from error


def _form(crop: "Crop | None") -> "Form":
    from data_ingest.sources.kinds import ANY_KIND

    return ANY_KIND._replace(crop=crop)


def _of_crop(data: bytes, crop: "Crop | None") -> bytes:
    return data if crop is None else Cropped(data)


def _invalid(error: "ImageRejected") -> InvalidImage:
    return InvalidImage(f"{error.reason}; {_ADVICE[error.reason.partition(' (')[0]]}")
