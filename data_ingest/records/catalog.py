"""Catalogues what was read: the sound images of each source, and where their bytes are."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from data_ingest.errors import shown
from data_ingest.sampling.draws import Ints
from data_ingest.sampling.index import ImageIndex, ImageRef, sort_order
from data_ingest.sources.faces import NEEDS_FACES
from data_ingest.sources.images import NEEDS_HEIC, NOT_AN_IMAGE, image_digest
from data_ingest.sources.layout import ImageFile, ending

BACKGROUND: Final = "background"
EVALUATION: Final = "evaluation"
IMAGES: Final = "images"
RUNS: Final = "runs"

TWO_CLASSES: Final = "same image in two classes"
"""Of such an image's reason the beginning; the end names the other file."""
SUMMARY_FILE: Final = "sampling.json"
"""Beside the records, as are the next two: what there is of them."""
REJECTED_FILE: Final = "rejected.jsonl"
COPIES_FILE: Final = "copies.jsonl"
_TOLD: Final = 8
_REMEDIES: Final = {
    reason: f" (`pip install 'siamese-oneshot[{extra}]'`, in a checkout `make setup`)"
    for reason, extra in ((NEEDS_HEIC, "heic"), (NEEDS_FACES, "faces"))
}


class Rejected(NamedTuple):
    """An image that cannot be used. Sorts by source and file."""

    source: str
    file: str
    reason: str


class Copy(NamedTuple):
    """An image that is left out since its class has the same already. Sorts by source and file."""

    source: str
    file: str
    copy_of: str


class Found(NamedTuple):
    """A sound image, without its bytes. Sorts by name and content."""

    ref: ImageRef
    digest: bytes
    """Of the encoded image."""
    file: str
    size: int
    """Of the encoded image, in bytes."""
    listing: int
    """Position in the source's list of files."""
    block: int
    """Number of the block that holds its bytes."""
    position: int
    """Where in the block."""

    @classmethod
    def of(
        cls, file: ImageFile, data: bytes, listing: int, block: int = 0, position: int = 0
    ) -> "Found":
        digest = image_digest(data)
        return cls(ImageRef.of(file), digest, file.path, len(data), listing, block, position)


class CatalogPart(NamedTuple):
    """What one worker read in one go."""

    source: str
    found: tuple[Found, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True, eq=False)
class LocatedIndex:
    """An index and, for each of its rows, the numbers that `Found` has for the image."""

    index: ImageIndex
    size: Ints
    listing: Ints
    block: Ints
    position: Ints

    def take(self, rows: Ints) -> "LocatedIndex":
        columns = (self.size, self.listing, self.block, self.position)
        return LocatedIndex(self.index.take(rows), *(column[rows] for column in columns))


@dataclass(frozen=True)
class Catalog:
    """All sources together. Independent of how the images were divided among workers."""

    sources: Mapping[str, LocatedIndex]
    rejected: tuple[Rejected, ...]
    """Sorted."""
    read: Mapping[str, int]
    """Images looked at, by source."""
    copies: tuple[Copy, ...] = ()
    """Sorted."""

    @property
    def duplicates(self) -> dict[str, int]:
        """Number of copies, by source; the official runs are left as they are."""
        counts = Counter(copy.source for copy in self.copies)
        return {source: counts[source] for source in self.read if source != RUNS}

    @property
    def rejected_share(self) -> float:
        return len(self.rejected) / max(1, sum(self.read.values()))


def build_catalog(parts: Iterable[CatalogPart]) -> Catalog:
    """Puts the parts together, in whatever order they come.

    Of several copies of an image in one class, one is kept: a pair of two copies would join an
    image with itself. An image that lies in two classes, be they of two sources, is rejected in
    both: no label for it can be right, and a model would be judged on what it was trained on. The
    official runs are left as they are.
    """
    by_source: dict[str, list[CatalogPart]] = {}
    files: dict[bytes, dict[str, str]] = {}
    for part in parts:
        by_source.setdefault(part.source, []).append(part)
    sound = {
        source: sorted(one for part in own for one in part.found)
        for source, own in sorted(by_source.items())
    }
    for one in itertools.chain(*(found for source, found in sound.items() if source != RUNS)):
        files.setdefault(one.digest, {}).setdefault(one.ref.class_name, one.file)
    rejected: list[Rejected] = []
    read: dict[str, int] = {}
    copies: list[Copy] = []
    for source, found in sound.items():
        unusable = [reject for part in by_source[source] for reject in part.rejected]
        read[source] = len(found) + len(unusable)
        if source != RUNS:
            sound[source], contradictory, same = _distinct(source, found, files)
            unusable += contradictory
            copies += same
        rejected += unusable
    sources = {source: locate(found) for source, found in sound.items()}
    return Catalog(sources, tuple(sorted(rejected)), read, tuple(sorted(copies)))


def locate(found: Sequence[Found]) -> LocatedIndex:
    """The index of these images, of which any two differ in class, name or content."""
    # The digest keeps two different images of one name (in two archives) apart.
    refs = [one.ref._replace(key=f"{one.ref.key}\0{one.digest.hex()}") for one in found]
    numbers = np.array([found[at][3:] for at in sort_order(refs)], np.int64).reshape(-1, 4)
    return LocatedIndex(ImageIndex.build(refs), *numbers.T.copy())


def _distinct(
    source: str, found: Sequence[Found], files: Mapping[bytes, Mapping[str, str]]
) -> tuple[list[Found], list[Rejected], list[Copy]]:
    """What is kept, rejected and left out of a source; `files` has each image's, by class."""
    distinct: dict[bytes, Found] = {}
    contradictory: list[Rejected] = []
    copies: list[Copy] = []
    for one in found:
        others = (file for name, file in files[one.digest].items() if name != one.ref.class_name)
        other = next(others, None)
        if other is not None:
            contradictory.append(Rejected(source, one.file, f"{TWO_CLASSES}: {other}"))
        elif (kept := distinct.setdefault(one.digest, one)) is not one:
            copies.append(Copy(source, one.file, kept.file))
    return list(distinct.values()), contradictory, copies


def in_two_classes(rejected: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Label noise: the files that hold one image in two classes, in pairs, each pair once.

    Args:
      rejected: name and reason of each.
    """
    pairs = (
        sorted((name, reason.partition(": ")[2]))
        for name, reason in rejected
        if reason.startswith(TWO_CLASSES)
    )
    return sorted({(first, second) for first, second in pairs})


def told_noise(one: str, other: str) -> str:
    """Says so of two such files, in a line for people."""
    return f"Label noise: {shown(one)} is the same image as {shown(other)}"


def count_reasons(rejected: Iterable[tuple[str, str]]) -> dict[str, int]:
    """How many files were rejected for each reason, most frequent first.

    Args:
      rejected: name and reason of each. Those that are no images are counted by ending.
    """
    return dict(
        Counter(
            f"{reason}: {ending(name) or 'no ending'}"
            if reason == NOT_AN_IMAGE
            else reason.partition(": ")[0]
            for name, reason in rejected
        ).most_common()
    )


def told_reasons(counts: Mapping[str, int]) -> str:
    """What `count_reasons` has counted, in a line for people: `96 not an image: .xcf, 1 empty`."""
    told = [
        f"{count:,} {shown(reason)}{_REMEDIES.get(reason, '')}" for reason, count in counts.items()
    ]
    more = f" and {len(told) - _TOLD} more reasons" if len(told) > _TOLD else ""
    return ", ".join(told[:_TOLD]) + more
