"""What is refused before a model or a database sees it."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from serving.errors import Code, ServingError

MAX_NAME: Final = 200
"""Longest name, characters."""
MAX_RATE: Final = 0.5
MAX_IMAGES: Final = 100
"""Most images of one call."""
MAX_IMAGE_BYTES: Final = 16 * 1024 * 1024
"""Largest encoded image; the model refuses larger ones too."""
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
        raise ServingError(
            Code.INVALID_ARGUMENT, f"a name has 1 to {MAX_NAME} characters, not {len(normal)}"
        )
    if any(unicodedata.category(character) in _FORBIDDEN for character in normal):
        raise ServingError(
            Code.INVALID_ARGUMENT, f"a name has no control characters or line breaks: {name!r}"
        )
    if re.search(r"^\s|\s$", normal):
        raise ServingError(
            Code.INVALID_ARGUMENT, f"a name does not begin or end with a space: {name!r}"
        )
    return normal


def checked_rate(rate: float) -> float:
    """The false-accept rate, if it is one.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    if not 0 < rate <= MAX_RATE:
        raise ServingError(
            Code.INVALID_ARGUMENT, f"a false-accept rate is above 0 and at most {MAX_RATE}: {rate}"
        )
    return rate


def check_images(images: Sequence[bytes], *, most: int = MAX_IMAGES) -> None:
    """Refuses what need not be sent to the model.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    if not 1 <= len(images) <= most:
        raise ServingError(Code.INVALID_ARGUMENT, f"1 to {most} images, not {len(images)}")
    for image in images:
        if not 1 <= len(image) <= MAX_IMAGE_BYTES:
            raise ServingError(
                Code.INVALID_ARGUMENT, f"an image has 1 to {MAX_IMAGE_BYTES} bytes: {len(image)}"
            )
