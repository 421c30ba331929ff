"""Remembers by digests which images a model has seen: to it those whom they show are no strangers.

A digest is the first 8 bytes of `image_digest`, as a number: a tenth of a mebibyte for Omniglot,
and nobody who has not the very image learns anything of it.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from data_ingest.sources.images import ImageRejected, image_digest, stored_form
from data_ingest.sources.kinds import Form, form_of
from serving.saved_model.contract import EXTRA, MODEL_CARD

Digests = npt.NDArray[np.uint64]

TRAINED_ON: Final = Path(EXTRA, "trained_on.bin")
"""Digests in ascending order, 8 bytes each, the highest first."""


def digest_of(image: bytes) -> int:
    """The digest of an image in its stored form, in [0, 2**64)."""
    return int.from_bytes(image_digest(image)[:8], "big")


def write_trained_on(model: Path, digests: Digests) -> None:
    """Puts the digests, `[n]` in any order, beside the model in this folder."""
    np.unique(digests).astype(">u8").tofile(model / TRAINED_ON)


def read_trained_on(model: Path) -> "TrainedOn | None":
    """What the model in this folder has seen; None where its export does not say, an earlier one.

    Raises:
      OSError: a file cannot be read.
      ValueError, KeyError: it is damaged.
    """
    try:
        content = (model / TRAINED_ON).read_bytes()
    except FileNotFoundError:
        return None
    if len(content) % 8:
        raise ValueError("it ends in the middle of a digest")
    card = json.loads((model / EXTRA / MODEL_CARD).read_text(encoding="utf-8"))
    form = form_of(card["kind"], card.get("max_side"))
    return TrainedOn(np.frombuffer(content, ">u8").astype(np.uint64), form)


class TrainedOn:
    """The images that a model was trained on, or that chose its weights."""

    def __init__(self, digests: Digests, form: Form) -> None:
        """Takes their digests, `[n]`, ascending, and the form in which they were stored."""
        self.digests = digests
        self.form = form

    def any_of(self, images: Iterable[bytes]) -> bool:
        """Whether the model has seen one of these images, as they came or as a gallery keeps them.

        Files as they came are surer: what is larger than the form, and was turned by its EXIF or
        came as WebP, AVIF or HEIC, is reduced to slightly other pixels from what a gallery keeps.
        """
        wanted = []
        for image in images:
            with contextlib.suppress(ImageRejected):
                wanted.append(digest_of(stored_form(image, self.form)))
        return bool(np.isin(np.array(wanted, np.uint64), self.digests).any())
