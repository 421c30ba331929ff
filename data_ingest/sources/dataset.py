"""Describes a set of images that is on disk: its kind, where it lies, and what is in it."""

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_ingest.sources.layout import list_images
from data_ingest.sources.path_patterns import has_span, latest


@dataclass(frozen=True)
class Dataset:
    """Images that are on disk."""

    kind: Literal["omniglot", "folder", "synthetic"]
    base: Path
    """Folder that `inputs` are relative to."""
    inputs: dict[str, str]
    """File pattern, relative to `base`, of the zips or root folders of each input split.

    `background`, `evaluation` and, where the official runs are there, `runs`; or only `images`,
    for images of one's own, which are still to be split.
    """
    description: str
    """One line for people: what it is and where it was found."""

    def containers(self) -> dict[str, list[Path]]:
        """The zips and folders behind `inputs`; of a pattern with spans, the latest."""
        return {
            split: [latest(self.base, pattern)]
            if has_span(Path(pattern))
            else sorted(self.base.glob(pattern))
            for split, pattern in self.inputs.items()
        }

    def check(self) -> "Dataset":
        """Looks the folders and tables of contents over, not the images; returns itself.

        Raises:
          InputError: as `layout.list_images`.
        """
        for containers in self.containers().values():
            for container in containers:
                list_images(container)
        return self

    def fingerprint(self) -> str:
        """Hex digest of what the images are, wherever they lie.

        Zips count by the names, sizes and checksums in their tables of contents; folders by the
        names, sizes and modification times of their images.
        """
        digest = hashlib.sha256()
        for split, containers in sorted(self.containers().items()):
            for container in containers:
                for line in _contents(container):
                    digest.update(f"{split}\0{line}\n".encode())
        return digest.hexdigest()


def _contents(container: Path) -> Iterator[str]:
    if not container.is_dir():
        with zipfile.ZipFile(container) as archive:
            for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
                yield f"{entry.filename}\0{entry.file_size}\0{entry.CRC}"
        return
    for image in list_images(container):
        try:
            status = (container / image.member).stat()
        except OSError:
            yield f"{image.member}\0unreadable"
        else:
            yield f"{image.member}\0{status.st_size}\0{status.st_mtime_ns}"
