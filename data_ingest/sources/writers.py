"""Tells by its name who drew an image: Omniglot's names, or a pattern that the user gives."""

import hashlib
import re
from typing import Final

UNKNOWN_WRITER: Final = 0

_OMNIGLOT: Final = re.compile(r"(?:.*/)?character\d{2}/\d{4}_(\d{2})\.png")
_LARGEST: Final = 2**52
"""So that statistics, which are floats, hold writers exactly."""


def checked_pattern(pattern: str) -> str:
    """Returns a pattern for `writer_of`.

    Raises:
      ValueError: it is no regular expression with exactly one group.
    """
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(
            f"it needs exactly one group (...), which is the writer, and has {groups}: "
            r"for names such as form7_ann_03.png, ^form\d+_([^_]+)_"
        )
    return pattern


def writer_of(uri: str, pattern: str | None = None) -> int:
    """The number of an image's writer, from 1; 0 where unknown.

    Without a pattern only names of Omniglot's own layout, which generated glyphs share, tell of
    one: `Greek/character03/0394_07.png` is by writer 7, `n000001/0001_01.jpg` by anybody.

    Args:
      uri: of the image, as `ImageFile.uri`.
      pattern: regular expression that is searched for in the name of the file; the text of its
        group is the writer. The number is made of that text alone, whatever other writers there
        are, and so is the same in all folders and spans.
    """
    if pattern is None:
        found = _OMNIGLOT.fullmatch(uri)
        return int(found[1]) if found else UNKNOWN_WRITER
    found = re.search(pattern, uri.rpartition("/")[2])
    if found is None or not found[1]:
        return UNKNOWN_WRITER
    digest = hashlib.blake2b(found[1].encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % _LARGEST
