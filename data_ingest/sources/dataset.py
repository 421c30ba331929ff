"""Describes a set of images on disk, and finds the latest of paths with span tokens."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_ingest.errors import InputError, ReadError, reading
from data_ingest.sources.containers import is_utf8, open_zip
from data_ingest.sources.kinds import Kind
from data_ingest.sources.layout import ImageFile, list_images, look_over

_TOKEN = re.compile(r"\{(SPAN|VERSION)(?::(\d+))?\}|\{(YYYY|MM|DD)\}")
_WILDCARDS = frozenset("*?[]{}\\")
_DATE_DIGITS = {"YYYY": r"\d{4}", "MM": r"\d{2}", "DD": r"\d{2}"}


@dataclass(frozen=True)
class Dataset:
    """Images that are on disk."""

    source: Literal["omniglot", "folder", "synthetic"]
    base: Path
    """Folder that `inputs` are relative to."""
    inputs: dict[str, str]
    """File pattern, relative to `base`, of the zips or root folders of each input split.

    `background`, `evaluation` and, where the official runs are there, `runs`; or only `images`,
    for images of one's own, which are still to be split.
    """
    description: str
    """One line for people: what it is and where it was found."""
    kind: Kind = "drawing"

    def containers(self) -> dict[str, list[Path]]:
        """The zips and folders behind `inputs`; of a pattern with spans, the latest."""
        return {
            split: [latest(self.base, pattern)]
            if has_span(Path(pattern))
            else sorted(self.base.glob(pattern))
            for split, pattern in self.inputs.items()
        }

    def images(self) -> list[ImageFile]:
        """All images, of every split, one container after another.

        Raises:
          InputError, ReadError: as `layout.list_images`.
        """
        containers = [one for split in self.containers().values() for one in split]
        return [file for container in containers for file in list_images(container)]

    def check(self) -> "Dataset":
        """Looks the folders and tables of contents over, not the images; returns itself.

        Raises:
          InputError, ReadError: as `layout.list_images`.
        """
        for split, containers in self.containers().items():
            if split == "runs":
                for container in containers:
                    list_images(container)
            else:
                look_over(containers)
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


def has_span(path: Path) -> bool:
    """Whether a path holds at least one span, version or date token."""
    return _TOKEN.search(str(path)) is not None


def split_at_span(path: Path) -> tuple[Path, str]:
    """Splits a path with tokens into the fixed folders before them, and the pattern after.

    >>> split_at_span(Path("/data/span-{SPAN}/images"))
    (PosixPath('/data'), 'span-{SPAN}/images')
    """
    parts = path.parts
    first = next(i for i, part in enumerate(parts) if _TOKEN.search(part))
    return Path(*parts[:first]), "/".join(parts[first:])


def refuse_wildcards(path: Path, *, named_by: str) -> None:
    """Raises InputError where a fixed path would be taken for a pattern, or is not UTF-8."""
    if not is_utf8(str(path)):
        raise InputError(
            f"{named_by}: {str(path)!a} is not UTF-8, as TFX needs names to be: rename it, or "
            "give a link to it"
        )
    found = sorted(_WILDCARDS & set(str(path)))
    if found:
        raise InputError(
            f"{named_by}: {path} has {' '.join(found)} in its name, which would be taken for "
            "wildcards: rename it, or give a link to it"
        )


def latest(base: Path, pattern: str) -> Path:
    """Finds what the pattern's latest span (and of that, the latest version) names.

    By the rules of TFX's ExampleGen: what is checked before a run is what TFX then takes.

    Raises:
      InputError: the tokens do not go together, or nothing matches.
    """
    tokens = [match[1] or match[3] for match in _TOKEN.finditer(pattern)]
    _check_tokens(pattern, tokens)
    regex = re.compile(_to_regex(pattern))
    order = [token for token in ("SPAN", "YYYY", "MM", "DD", "VERSION") if token in tokens]
    found = [
        ([int(match[token]) for token in order], entry)
        for entry in _entries(base, pattern.count("/"))
        if (match := regex.fullmatch(entry.relative_to(base).as_posix()))
    ]
    if not found:
        raise InputError(f"dataset.data: nothing matches {pattern} in {base}")
    return max(found)[1]


def _contents(container: Path) -> Iterator[str]:
    if not container.is_dir():
        with open_zip(container) as archive:
            for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
                yield f"{entry.filename}\0{entry.file_size}\0{entry.CRC}"
        return
    for image in list_images(container):
        try:
            with reading(image.path):
                status = (container / image.member).stat()
        except ReadError:
            raise
        except OSError:
            yield f"{image.member}\0unreadable"
        else:
            yield f"{image.member}\0{status.st_size}\0{status.st_mtime_ns}"


def _check_tokens(pattern: str, tokens: list[str]) -> None:
    dates = [token for token in tokens if token in _DATE_DIGITS]
    problem = None
    if len(set(tokens)) != len(tokens):
        problem = "names a token twice"
    elif dates and ("SPAN" in tokens or len(dates) != 3):
        problem = "needs either {SPAN} or all of {YYYY}, {MM} and {DD}"
    elif "VERSION" in tokens and len(tokens) == 1:
        problem = "needs a {SPAN} with its {VERSION}"
    elif wild := _WILDCARDS & set(_TOKEN.sub("", pattern)):
        problem = f"has {' '.join(sorted(wild))} besides, which would be taken for wildcards"
    if problem:
        raise InputError(f"dataset.data: {pattern} {problem}")


def _to_regex(pattern: str) -> str:
    pieces, position = [], 0
    for match in _TOKEN.finditer(pattern):
        pieces.append(re.escape(pattern[position : match.start()]))
        if match[1]:
            digits = rf"\d{{{match[2]}}}" if match[2] else r"\d+"
        else:
            digits = _DATE_DIGITS[match[3]]
        pieces.append(f"(?P<{match[1] or match[3]}>{digits})")
        position = match.end()
    return "".join(pieces) + re.escape(pattern[position:])


def _entries(base: Path, depth: int) -> list[Path]:
    """What lies so deep below a folder."""
    folders = [base] if base.is_dir() else []
    for _ in range(depth):
        folders = [entry for folder in folders for entry in folder.iterdir() if entry.is_dir()]
    return [entry for folder in folders for entry in folder.iterdir()]
