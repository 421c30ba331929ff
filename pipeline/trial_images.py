"""The images that trials are made of: an index of the sound ones, read again when needed."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_ingest.errors import InputError
from data_ingest.few_shot import FewShotTrial
from data_ingest.index import ImageIndex, ImageRef, sort_order
from data_ingest.layout import ImageFile, ImageReader
from data_ingest.official import OfficialTrial

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrialImages:
    """Sound images by row of an index, without their bytes: a hundred thousand fit in memory."""

    index: ImageIndex
    files: tuple[ImageFile, ...]
    """By row of the index."""
    listing: tuple[int, ...]
    """Position of each row's file among those that were looked at."""
    rejected: int
    reader: ImageReader

    def encoded(self, row: int) -> bytes:
        """The bytes of an image.

        Raises:
          UnreadableImageError: it is no longer there.
        """
        return self.reader.read(self.files[row])

    def official(self, trials: Iterable[OfficialTrial]) -> list[FewShotTrial]:
        """The trials, given by positions among the files, all of whose images are sound."""
        row_of = {listed: row for row, listed in enumerate(self.listing)}
        return [
            FewShotTrial(
                trial_id=trial.trial_id,
                query=row_of[trial.query],
                references=tuple((row_of[at],) for at in trial.support),
                answer=trial.answer,
            )
            for trial in trials
            if all(at in row_of for at in (trial.query, *trial.support))
        ]


def sound_images(
    files: Sequence[ImageFile], reader: ImageReader, *, copies: bool = False
) -> TrialImages:
    """Reads every image once and keeps those that can be used, but not their bytes.

    Args:
      files: of one container or several.
      reader: stays open as long as the result is used.
      copies: whether a class keeps all copies of an image, as published trials must. Else it keeps
        one: a query that is a copy of its candidate would be no question.

    Raises:
      InputError: none of them can be used.
    """
    usable: list[int] = []
    seen: set[tuple[str, bytes]] = set()
    rejected = 0
    for position, file in enumerate(files):
        data, reason = reader.read_checked(file)
        if reason is not None:
            _LOGGER.warning("%s left out: %s", file.member, reason)
            rejected += 1
            continue
        copy = (file.class_name, hashlib.blake2b(data, digest_size=16).digest())
        if copies or copy not in seen:
            seen.add(copy)
            usable.append(position)
    if not usable:
        raise InputError(f"{files[0].container}: none of its {len(files)} images can be read")
    refs = [
        ImageRef(file.group, file.class_name, file.writer, f"{file.uri}\0{file.container}")
        for file in (files[position] for position in usable)
    ]
    listing = tuple(usable[at] for at in sort_order(refs))
    return TrialImages(
        index=ImageIndex.build(refs),
        files=tuple(files[position] for position in listing),
        listing=listing,
        rejected=rejected,
        reader=reader,
    )
