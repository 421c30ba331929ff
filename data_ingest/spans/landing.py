"""Reading the images of a new span, each of them checked, and writing them as zips."""

import hashlib
import logging
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from data_ingest.errors import InputError, naming
from data_ingest.records.catalog import (
    IMAGES,
    TWO_CLASSES,
    CatalogPart,
    Found,
    LocatedIndex,
    Rejected,
    build_catalog,
)
from data_ingest.records.plan import too_many_rejected
from data_ingest.sampling.draws import Ints
from data_ingest.sources.layout import (
    ImageFile,
    ImageReader,
    RejectedFile,
    UnreadableImageError,
    image_digest,
    list_images,
)

_PROGRESS_EVERY: Final = 10_000
_log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """What a zip's table of contents says of an image, and so its identity without reading it."""

    name: str
    size: int
    crc: int


@dataclass(frozen=True, eq=False)
class Reading:
    """All images of some folders and zips, read and checked one by one; not their bytes."""

    files: Sequence[ImageFile]
    found: Mapping[int, tuple[Found, Entry]]
    """By position in `files`."""
    rejected: Sequence[Rejected]


@dataclass(frozen=True, eq=False)
class NewImages:
    """The sound and distinct images of a reading."""

    located: LocatedIndex
    rejected: tuple[Rejected, ...]
    duplicates: int
    _reading: Reading

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._reading.found[int(at)][1] for at in self.located.listing)

    def write(self, path: Path, rows: Ints) -> None:
        """Writes the images of these rows as a zip that depends on them alone, down to the byte.

        Raises:
          InputError: an image is no longer what it was when it was checked.
          OSError: the folder cannot be written, or its disk is full.
        """
        listings = [int(self.located.listing[row]) for row in rows]
        listings.sort(key=lambda listing: self._reading.found[listing][1])
        with naming(path), ImageReader() as reader, zipfile.ZipFile(path, "x") as archive:
            for listing in listings:
                found, entry = self._reading.found[listing]
                try:
                    data = reader.read(self._reading.files[listing])
                except UnreadableImageError:
                    data = b""
                if image_digest(data) != found.digest:
                    raise InputError(
                        f"{found.file} changed while it was being read: wait until the "
                        "images are complete, and run again"
                    )
                archive.writestr(zipfile.ZipInfo(entry.name), data)


def read_images(sources: Sequence[Path]) -> Reading:
    """Reads and checks all images of some folders and zips.

    Raises:
      InputError: a source cannot be listed.
    """
    files = [file for source in sources for file in list_images(source)]
    found: dict[int, tuple[Found, Entry]] = {}
    rejected: list[RejectedFile] = []
    with ImageReader() as reader:
        for listing, file, data in reader.sound(files, rejected):
            entry = Entry(file.uri, len(data), zlib.crc32(data))
            found[listing] = (Found.of(file, data, listing), entry)
            if listing % _PROGRESS_EVERY == _PROGRESS_EVERY - 1:
                _log.info("Checked %d of %d images", listing + 1, len(files))
    return Reading(files, found, [Rejected(IMAGES, bad.file.path, bad.reason) for bad in rejected])


def settle(reading: Reading, *, earlier: Sequence[Path], max_rejected_share: float) -> NewImages:
    """Leaves out copies, and images that lie in two classes.

    Of several copies of an image in one class, one is kept. An image that lies in two classes,
    be the other in an earlier span, is rejected: no label for it can be right, and were they on
    different sides, a model would be judged on what it was trained on.

    Args:
      reading: what was read.
      earlier: zips of earlier spans.
      max_rejected_share: share of unusable images above which all are refused.

    Raises:
      InputError: two images share a name, or too many are unusable.
    """
    contradictory = _of_other_classes(reading.found, earlier)
    rejected = [
        *reading.rejected,
        *(Rejected(IMAGES, reading.found[at][0].file, TWO_CLASSES) for at in contradictory),
    ]
    sound = tuple(found for at, (found, _) in reading.found.items() if at not in contradictory)
    catalog = build_catalog([CatalogPart(IMAGES, sound, tuple(rejected))])
    located = catalog.sources[IMAGES]
    if catalog.rejected_share > max_rejected_share or not len(located.index):
        raise InputError(too_many_rejected(catalog, max_rejected_share))
    _refuse_equal_names(reading.found[int(at)] for at in located.listing)
    return NewImages(located, catalog.rejected, catalog.duplicates[IMAGES], reading)


def table_of_contents(path: Path) -> list[Entry]:
    """What a span's zip holds.

    Raises:
      InputError: it is gone or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [Entry(info.filename, info.file_size, info.CRC) for info in archive.infolist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it from a copy") from error


def fingerprint(entries: Iterable[Entry]) -> str:
    """Hex digest of what the images are, whatever their order."""
    digest = hashlib.sha256()
    for name, size, crc in sorted(entries):
        digest.update(f"{name}\0{size}\0{crc}\n".encode())
    return digest.hexdigest()


def _of_other_classes(
    found: Mapping[int, tuple[Found, Entry]], earlier: Sequence[Path]
) -> set[int]:
    """Which of the images an earlier span has in another class."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for listing, (_, entry) in found.items():
        alike[entry.size, entry.crc].append(listing)
    others: set[int] = set()
    for path in earlier:
        for entry in table_of_contents(path):
            class_name = entry.name.rpartition("/")[0]
            suspects = [
                listing
                for listing in alike.get((entry.size, entry.crc), ())
                if found[listing][0].ref.class_name != class_name
            ]
            if suspects:
                with zipfile.ZipFile(path) as archive:
                    digest = image_digest(archive.read(entry.name))
                others.update(at for at in suspects if found[at][0].digest == digest)
    return others


def _refuse_equal_names(kept: Iterable[tuple[Found, Entry]]) -> None:
    first: dict[str, Found] = {}
    for found, entry in kept:
        other = first.setdefault(entry.name, found)
        if other is not found:
            raise InputError(
                f"two different images are named {entry.name}: {other.file} and {found.file}. "
                "Rename one of them"
            )
