"""Checks what a gallery is given, and brings it to the forms in which it is kept."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from data_ingest.sources.kinds import Crop
from serving.client.images import encode_images
from serving.errors import invalid
from serving.gallery.threshold import MAX_RATE

MAX_NAME: Final = 200
"""Longest name, characters."""
MAX_IMAGES: Final = 100
"""Most images of one call."""
_FORBIDDEN: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


def checked_name(name: str) -> str:
    """The name in the one form in which it is stored (Unicode NFC).

    Names are free text: spaces, quotes, slashes and any script are fine.

    Raises:
      ServingError: INVALID_ARGUMENT: empty, too long, begins or ends with a space, or holds control
        characters, line breaks or broken Unicode.
    """
    normal = unicodedata.normalize("NFC", name)
    if not normal or len(normal) > MAX_NAME:
        raise invalid(f"a name has 1 to {MAX_NAME} characters, not {len(normal)}")
    if any(unicodedata.category(character) in _FORBIDDEN for character in normal):
        raise invalid(f"a name has no control characters, line breaks or broken Unicode: {name!r}")
    if re.search(r"^\s|\s$", normal):
        raise invalid(f"a name does not begin or end with a space: {name!r}")
    return normal


def checked_rate(rate: float) -> float:
    """The false-accept rate, if it is one.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    if not 0 < rate <= MAX_RATE:
        raise invalid(f"a false-accept rate is above 0 and at most {MAX_RATE}: {rate}")
    return rate


def usable_enrolment(
    name: str, images: Sequence[bytes], *, crop: Crop | None = None
) -> tuple[str, list[bytes]]:
    """The name and the images in the forms in which they are stored.

    Raises:
      ServingError: INVALID_ARGUMENT; the message says whose image it is, and which.
    """
    name = checked_name(name)
    if not 1 <= len(images) <= MAX_IMAGES:
        raise invalid(f"1 to {MAX_IMAGES} images, not {len(images)}")
    return name, list(encode_images(list(images), name=f"{name!r}, image", crop=crop))
