"""Reading the images of a new span, each of them checked, and writing them as zips."""

import hashlib
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_ingest.errors import InputError, naming
from data_ingest.progress import counted
from data_ingest.records.catalog import (
    IMAGES,
    TWO_CLASSES,
    CatalogPart,
    Found,
    Rejected,
    build_catalog,
)
from data_ingest.records.plan import too_many_rejected
from data_ingest.sampling.draws import Ints
from data_ingest.sampling.index import ImageIndex
from data_ingest.sources.containers import open_zip
from data_ingest.sources.images import ImageRejected, image_digest
from data_ingest.sources.kinds import Form
from data_ingest.sources.layout import ImageFile, ImageReader, normal_form


class Entry(NamedTuple):
    """What a zip's table of contents says of an image, and so its identity without reading it."""

    name: str
    size: int
    crc: int


class NewImage(NamedTuple):
    """A sound image, without its bytes."""

    file: ImageFile
    found: Found
    entry: Entry


class Reading(NamedTuple):
    """All images of some folders and zips, read and checked one by one."""

    sound: Sequence[NewImage]
    rejected: Sequence[Rejected]
    form: Form


@dataclass(frozen=True, eq=False)
class NewImages:
    """The sound and distinct images of a reading."""

    index: ImageIndex
    images: Sequence[NewImage]
    """By row of the index."""
    rejected: tuple[Rejected, ...]
    duplicates: int
    form: Form

    @property
    def fingerprint(self) -> str:
        return fingerprint(image.entry for image in self.images)

    def write(self, path: Path, rows: Ints) -> None:
        """Writes the images of these rows as a zip that depends on them alone, down to the byte.

        Raises:
          InputError: an image is no longer what it was when it was checked.
          OSError: the folder cannot be written, or its disk is full.
        """
        images = sorted((self.images[row] for row in rows), key=lambda image: image.entry)
        with naming(path), ImageReader(self.form) as reader, zipfile.ZipFile(path, "x") as archive:
            for image in images:
                try:
                    data = reader.image(image.file)
                except ImageRejected:
                    data = b""
                if image_digest(data) != image.found.digest:
                    raise InputError(
                        f"{image.file.path} changed while it was being read: wait until the "
                        "images are complete, and run again"
                    )
                archive.writestr(zipfile.ZipInfo(image.entry.name), data)


def read_images(files: Sequence[ImageFile], form: Form) -> Reading:
    """Reads and checks images, which are to be stored in a form.

    Raises:
      InputError: an image may not be read.
      ReadError: as `data_ingest.errors.reading`.
    """
    sound: list[NewImage] = []
    rejected: list[tuple[ImageFile, str]] = []
    with ImageReader(form) as reader:
        listed = counted(files, "Checking images", len(files))
        for _, file, data in reader.sound(listed, rejected):
            entry = Entry(file.uri, len(data), zlib.crc32(data))
            sound.append(NewImage(file, Found.of(file, data, len(sound)), entry))
    unusable = [Rejected(IMAGES, bad.path, reason) for bad, reason in rejected]
    return Reading(sound, unusable, form)


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
    contradictory = _of_other_classes(reading.sound, earlier)
    rejected = [
        *reading.rejected,
        *(
            Rejected(IMAGES, image.file.path, f"{TWO_CLASSES}: {other}")
            for image, other in contradictory.items()
        ),
    ]
    sound = [image.found for image in reading.sound if image not in contradictory]
    catalog = build_catalog([CatalogPart(IMAGES, tuple(sound), tuple(rejected))])
    index, listing = catalog.sources[IMAGES].index, catalog.sources[IMAGES].listing
    if catalog.rejected_share > max_rejected_share or not len(index):
        raise InputError(too_many_rejected(catalog, max_rejected_share))
    images = [reading.sound[at] for at in listing]
    first: dict[str, NewImage] = {}
    for image in images:
        other = first.setdefault(image.entry.name, image)
        if other is not image:
            raise InputError(
                f"two different images are named {image.entry.name}: {other.file.path} and "
                f"{image.file.path}. Rename one of them"
            )
    return NewImages(index, images, catalog.rejected, len(catalog.copies), reading.form)


def table_of_contents(path: Path) -> list[Entry]:
    """What a span's zip holds.

    Raises:
      InputError: it is gone or damaged.
      ReadError: as `data_ingest.errors.reading`.
    """
    try:
        with open_zip(path) as archive:
            return [Entry(info.filename, info.file_size, info.CRC) for info in archive.infolist()]
    except InputError as error:
        raise InputError(f"{error}; spans never change: restore it from a copy") from error


def fingerprint(entries: Iterable[Entry]) -> str:
    """Hex digest of what the images are, whatever their order."""
    digest = hashlib.sha256()
    for name, size, crc in sorted(entries):
        digest.update(f"{name}\0{size}\0{crc}\n".encode())
    return digest.hexdigest()


def _of_other_classes(images: Sequence[NewImage], earlier: Sequence[Path]) -> dict[NewImage, str]:
    """Which of the images an earlier span has in another class, and where."""
    alike: dict[tuple[int, int], list[NewImage]] = defaultdict(list)
    for image in images:
        alike[image.entry[1:]].append(image)
    others: dict[NewImage, str] = {}
    with ImageReader() as reader:
        for path in earlier:
            for entry in table_of_contents(path):
                class_name = normal_form(entry.name.rpartition("/")[0])
                suspects = [
                    image
                    for image in alike.get(entry[1:], ())
                    if image.file.class_name != class_name
                ]
                if suspects:
                    digest = image_digest(_landed(path, entry.name, reader))
                    for image in suspects:
                        if image.found.digest == digest:
                            others.setdefault(image, f"{path}/{entry.name}")
    return others


def _landed(path: Path, name: str, reader: ImageReader) -> bytes:
    try:
        return reader.read(ImageFile("", "", 0, str(path), name))
    except ImageRejected as error:
        raise InputError(f"{error}: restore the span from a copy") from error
