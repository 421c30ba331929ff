"""Reads one landed span: the record in its folder, and whether its images are still the same."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, Field

from data_ingest.errors import InputError, reading
from data_ingest.progress import counted
from data_ingest.sampling.index import Unit
from data_ingest.settings import Settings
from data_ingest.sources.kinds import Kind
from data_ingest.sources.layout import ImageFile, ImageReader, list_images
from data_ingest.spans.landing import fingerprint, table_of_contents
from data_ingest.spans.sides import SIDES, Side

RECORD: Final = "span.json"


class RejectedImage(Settings):
    """An image that was left out, and why."""

    file: str
    reason: str


class Span(Settings):
    """A landed span: the content of its `span.json`, where it lies and whether it is used."""

    model_config = ConfigDict(populate_by_name=True)

    path: Path = Field(exclude=True)
    excluded: str | None = Field(default=None, exclude=True)
    """Why no training uses it; None where trainings do."""
    readmitted: bool = Field(default=False, exclude=True)
    """Whether a person has decided that trainings use it."""
    number: int
    previous: int | None
    """The span before it; None of the first."""
    landed: str
    """UTC, ISO 8601."""
    sources: tuple[str, ...]
    """Folders and zips that it was made of."""
    fingerprint: str
    """Digest of names, sizes and checksums of all its images."""
    kind: Kind = "drawing"
    """Of its images, in the form of which they landed. Early records do not tell it."""
    unit: Unit
    """What keeps its side: a group, or, where the first span had fewer than three, a class."""
    new: dict[str, Side]
    """Sides of the groups (or classes) that first appeared in this span."""
    images: dict[Side, int]
    classes: dict[Side, int]
    groups: int
    duplicates: int
    """Copies of an image in one class that were left out."""
    rejected: tuple[RejectedImage, ...] = Field(alias="refused")
    """`refused` in the file."""
    sha256: dict[Side, str] = Field(default_factory=dict)
    """Hex digests of its zips. Early records do not tell them."""

    def container(self, side: Side) -> Path | None:
        """The zip of the images of that side; None where the span has none."""
        return self.path / f"{side}.zip" if self.images[side] else None

    @property
    def containers(self) -> tuple[Path, ...]:
        """The zips of both sides."""
        return tuple(path for side in SIDES if (path := self.container(side)) is not None)

    def check(self) -> None:
        """Looks over tables of contents; `check_bytes` reads the rest.

        Raises:
          InputError: the zips are not what landed.
        """
        found = [entry for path in self.containers for entry in table_of_contents(path)]
        if fingerprint(found) != self.fingerprint:
            raise InputError(
                f"{self.path} has changed since it landed, and spans never do: restore it from "
                "a copy"
            )

    def check_bytes(self, side: Side) -> None:
        """Reads the zip of a side, where its digest is known.

        Raises:
          InputError: its bytes are not those that landed.
          ReadError: as `data_ingest.errors.reading`.
        """
        path, landed = self.container(side), self.sha256.get(side)
        if path is not None and landed is not None and sha256_of(path) != landed:
            raise InputError(
                f"span {self.number}: the bytes of {path} are not those that landed: restore the "
                "file from a copy, or leave the span out: `oneshot spans exclude "
                f"{self.number} --reason TEXT`"
            )

    def unusable(self) -> list[RejectedImage]:
        """Reads all images and tells which trainings leave out, though they landed.

        An earlier release took what no model can see, or noted no digest by which damage is found.

        Raises:
          InputError, ReadError: as `ImageReader.read`.
        """
        rejected: list[tuple[ImageFile, str]] = []
        with ImageReader() as reader:
            for container in self.containers:
                files = list_images(container)
                listed = counted(files, f"Checking images of span {self.number}", len(files))
                for _ in reader.sound(listed, rejected):
                    pass
        return [RejectedImage(file=bad.path, reason=reason) for bad, reason in rejected]


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read a MiB at a time.

    Raises:
      InputError: it is gone, or may not be read.
      ReadError: as `data_ingest.errors.reading`.
    """
    digest = hashlib.sha256()
    try:
        with reading(str(path)), path.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    except FileNotFoundError as error:
        raise InputError(f"{path} is gone: restore it from a copy") from error
    return digest.hexdigest()


def read_span(path: Path, *, decision: Mapping[str, Any]) -> Span:
    """Reads the record in a span's folder.

    Args:
      path: the folder.
      decision: values of `excluded` and `readmitted`.

    Raises:
      InputError: it is missing, damaged, or that of another span.
    """
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        span = Span.model_validate({**record, "path": path, **decision})
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path / RECORD} cannot be read ({error}): restore it") from error
    if path.name != f"span-{span.number}":
        raise InputError(f"{path} is span {span.number}: give the folder its name back")
    return span
