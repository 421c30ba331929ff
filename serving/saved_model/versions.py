"""Lists the versions of a model: which there are, which are complete or rolled back, the newest.

A version is a folder under the model's base path whose name is its number, as for TF Serving.
Versions are written, withdrawn and removed by `components.pusher.versions`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from data_ingest.sources.kinds import ANY_KIND, Crop, Form, form_of
from serving.saved_model.contract import (
    EXTRA,
    MODEL_CARD,
    PREPROCESSING_NEWS,
    PREPROCESSING_VERSION,
)

SAVED_MODEL: Final = "saved_model.pb"
"""The file without which a version's folder cannot be loaded."""
ROLLED_BACK_PREFIX: Final = "rolled-back-"
"""Stands before the number of a version that was taken out of service; servers pass it over."""
_LARGEST: Final = 2**63 - 1


def numbered(names: Iterable[str], *, prefix: str = "") -> dict[int, str]:
    """Names that are a number after `prefix`, by this number, ascending.

    A number has ASCII digits only and fits in an int64, as for TF Serving. Of names with the same
    number, such as `3` and `003`, the first in alphabetical order counts.
    """
    found: dict[int, str] = {}
    for name in sorted(names):
        digits = name.removeprefix(prefix)
        if not (name.startswith(prefix) and digits.isascii() and digits.isdecimal()):
            continue
        if (number := int(digits)) <= _LARGEST:
            found.setdefault(number, name)
    return dict(sorted(found.items()))


def version_folders(base: Path, *, prefix: str = "") -> dict[int, Path]:
    """Folders of the versions under a base path, by number, ascending; complete or not.

    Raises:
      OSError: `base` is missing or unreadable: a server then keeps what it has loaded.
    """
    names = numbered((entry.name for entry in base.iterdir() if entry.is_dir()), prefix=prefix)
    return {number: base / name for number, name in names.items()}


def versions(base: Path) -> list[int]:
    """Numbers of the versions under a base path, ascending; empty if it does not exist."""
    return list(version_folders(base)) if base.is_dir() else []


def rolled_back_versions(base: Path) -> dict[int, Path]:
    """Folders of the versions that were rolled back, by number; empty if `base` does not exist."""
    return version_folders(base, prefix=ROLLED_BACK_PREFIX) if base.is_dir() else {}


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a SavedModel."""
    return (folder / SAVED_MODEL).is_file()


def newest_complete(base: Path) -> Path | None:
    """Folder of the newest version that holds a SavedModel; None where there is none."""
    folders = version_folders(base).values() if base.is_dir() else []
    return next(filter(is_complete, reversed(list(folders))), None)


def stored_as(folder: Path) -> Form:
    """The form in which the images were stored that a version was trained on.

    That of any kind where the folder has no readable model card, or an early one.
    """
    try:
        card = json.loads((folder / EXTRA / MODEL_CARD).read_text(encoding="utf-8"))
        return form_of(card["kind"], card.get("max_side"))
    except (OSError, ValueError, LookupError, TypeError):
        return ANY_KIND


def outdated(folder: Path) -> str:
    """What a version lacks that an export by this release would have, in a few words; else empty.

    Empty too where it has no readable model card, and so is none of ours.
    """
    try:
        card = json.loads((folder / EXTRA / MODEL_CARD).read_text(encoding="utf-8"))
        made_with = int(card.get("preprocessing_version", 1))
    except (OSError, ValueError, TypeError, AttributeError):
        return ""
    return "" if made_with >= PREPROCESSING_VERSION else PREPROCESSING_NEWS


def read_crop(folder: Path) -> Crop | None:
    """What was cut out of the images that the model in this folder learnt of, by its model card.

    None where that is nothing, or there is no card.

    Raises:
      OSError: the card cannot be read.
      ValueError: it is damaged.
    """
    try:
        card = json.loads((folder / EXTRA / MODEL_CARD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    crop: Crop | None = card.get("crop")
    return crop
