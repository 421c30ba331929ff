"""Catalogues what was read: the sound images of each source, and where their bytes are."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from data_ingest.sampling.draws import Ints
from data_ingest.sampling.index import ImageIndex, ImageRef, sort_order
from data_ingest.sources.layout import ImageFile, image_digest

BACKGROUND: Final = "background"
EVALUATION: Final = "evaluation"
IMAGES: Final = "images"
RUNS: Final = "runs"

TWO_CLASSES: Final = "same image in two classes"


class Rejected(NamedTuple):
    """An image that cannot be used. Sorts by source and file."""

    source: str
    file: str
    reason: str


class Found(NamedTuple):
    """A sound image, without its bytes."""

    ref: ImageRef
    file: str
    digest: bytes
    """Of the encoded image."""
    size: int
    """Of the encoded image, in bytes."""
    listing: int
    """Position in the source's list of files."""

    @classmethod
    def of(cls, file: ImageFile, data: bytes, listing: int) -> "Found":
        ref = ImageRef(file.group, file.class_name, file.writer, file.uri)
        return cls(ref, file.path, image_digest(data), len(data), listing)


class CatalogPart(NamedTuple):
    """What one worker read in one go: a block of images, with its number, and the rejected."""

    source: str
    block: int
    found: tuple[Found, ...]
    """In the order in which the block holds them."""
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True, eq=False)
class LocatedIndex:
    """An index and, for each of its rows, which block holds the image, and where in it."""

    index: ImageIndex
    block: Ints
    position: Ints
    size: Ints
    listing: Ints

    def take(self, rows: Ints) -> "LocatedIndex":
        return LocatedIndex(
            self.index.take(rows),
            self.block[rows],
            self.position[rows],
            self.size[rows],
            self.listing[rows],
        )


@dataclass(frozen=True)
class Catalog:
    """All sources together. Independent of how the images were divided among workers."""

    sources: Mapping[str, LocatedIndex]
    rejected: tuple[Rejected, ...]
    """Sorted."""
    read: Mapping[str, int]
    """Images looked at, by source."""
    duplicates: Mapping[str, int] = field(default_factory=dict)
    """Images left out because their class has the same image already, by source."""

    @property
    def rejected_share(self) -> float:
        return len(self.rejected) / max(1, sum(self.read.values()))


def build_catalog(parts: Iterable[CatalogPart]) -> Catalog:
    """Puts the parts together, in whatever order they come.

    Of several copies of an image in one class, one is kept: a pair of two copies would join an
    image with itself. An image that lies in two classes is rejected in both, because no label
    for it can be right. The official runs are left as they are.
    """
    by_source: dict[str, list[CatalogPart]] = {}
    for part in parts:
        by_source.setdefault(part.source, []).append(part)
    sources: dict[str, LocatedIndex] = {}
    rejected: list[Rejected] = []
    read: dict[str, int] = {}
    duplicates: dict[str, int] = {}
    for source, own in sorted(by_source.items()):
        placed = [
            (found, part.block, position)
            for part in own
            for position, found in enumerate(part.found)
        ]
        unusable = [reject for part in own for reject in part.rejected]
        read[source] = len(placed) + len(unusable)
        placed.sort(key=lambda item: (item[0].ref, item[0].digest, item[0].file))
        if source != RUNS:
            distinct, contradictory = _distinct(source, placed)
            duplicates[source] = len(placed) - len(distinct) - len(contradictory)
            unusable += contradictory
            placed = distinct
        rejected += unusable
        sources[source] = _located(placed)
    return Catalog(sources, tuple(sorted(rejected)), read, duplicates)


_Placed = list[tuple[Found, int, int]]


def _distinct(source: str, placed: _Placed) -> tuple[_Placed, list[Rejected]]:
    classes_of: dict[bytes, set[str]] = {}
    for found, _, _ in placed:
        classes_of.setdefault(found.digest, set()).add(found.ref.class_name)
    seen: set[bytes] = set()
    distinct: _Placed = []
    contradictory: list[Rejected] = []
    for item in placed:
        found = item[0]
        if len(classes_of[found.digest]) > 1:
            contradictory.append(Rejected(source, found.file, TWO_CLASSES))
        elif found.digest not in seen:
            seen.add(found.digest)
            distinct.append(item)
    return distinct, contradictory


def _located(placed: _Placed) -> LocatedIndex:
    # The digest keeps two different images of one name (in two archives) apart.
    refs = [
        found.ref._replace(key=f"{found.ref.key}\0{found.digest.hex()}") for found, _, _ in placed
    ]
    order = sort_order(refs)
    columns = np.array(
        [(placed[at][1], placed[at][2], placed[at][0].size, placed[at][0].listing) for at in order],
        np.int64,
    ).reshape(-1, 4)
    return LocatedIndex(ImageIndex.build(refs), *columns.T.copy())


def count_reasons(rejected: Iterable[Rejected]) -> dict[str, int]:
    """How many images were rejected for each reason, most frequent first."""
    return dict(Counter(reject.reason for reject in rejected).most_common())
