"""Opens zips, whoever packed them, and lists the files in folders and zips."""

import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from data_ingest.errors import InputError, ReadError, reading, shown

ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""What `zipfile` raises where an archive, or a member, is damaged or encrypted."""
_MAX_DEPTH: Final = 12
_UTF8: Final = 0x800
_ENCRYPTED: Final = 0x1
_FAT: Final = 0
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Of the others Python unpacks at once whatever a piece holds: 400 bytes of bzip2 are 512 MiB."""
_MAX_FILES: Final = 2_000_000
_MAX_LISTING: Final = 2**29
"""Bytes of an archive's table of contents: `_MAX_FILES` names of 200 letters."""
_ZIP64_END: Final = 76
"""Bytes of what may lie between the table of contents and the record of its end."""
_MAX_RATIO: Final = 500
"""Plain drawings as BMP reach 400, a file of zeros 1,030."""
_ANY_RATIO: Final = 2**30
"""Bytes that an archive may unpack to, however small it is."""


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip; close it after use.

    Backslashes that Windows wrote between folders become slashes. Names that are UTF-8 without
    saying so, as macOS writes them, are read as that; others are CP437, as the format has it.

    Raises:
      InputError: it is missing, damaged, or may not be read; is protected by a password, or packed
        otherwise than by Deflate; holds more than 2,000,000 files, a link, or a name twice; or is
        made as zip bombs are: files that share their bytes, or 500 times its size when unpacked.
      ReadError: as `reading`.
    """
    try:
        with reading(str(path)):
            _refuse_long_listing(path)
            archive = zipfile.ZipFile(path)
    except (InputError, ReadError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give a folder or a zip of images") from error
    except (OSError, *ZIP_ERRORS) as error:
        raise InputError(
            f"{path} cannot be read as a zip archive ({error}): "
            "give a folder or an undamaged zip of images"
        ) from error
    try:
        for entry in archive.infolist():
            entry.filename = _name(entry)
            _refuse_unreadable(path, entry)
        _refuse_bomb(path, archive.infolist())
        archive.NameToInfo = {entry.filename: entry for entry in archive.infolist()}
        if len(archive.NameToInfo) < len(archive.infolist()):
            _refuse_twins(path, archive.infolist())
    except InputError:
        archive.close()
        raise
    return archive


def list_members(container: Path) -> list[str]:
    """Paths of all files in a folder or zip, sorted, but hidden ones and `__MACOSX`.

    Raises:
      InputError: the container cannot be read.
      ReadError: as `data_ingest.errors.reading`.
    """
    try:
        with reading(str(container)):
            if container.is_dir():
                return sorted(_walk(container, "", ()))
            if not container.exists():
                raise InputError(f"{container} does not exist: give a folder or a zip of images")
            if not container.is_file():
                raise InputError(f"{container} is neither a folder nor a zip of images")
            with open_zip(container) as archive:
                names = {entry.filename for entry in archive.infolist() if not entry.is_dir()}
            return sorted(name for name in names if not _is_hidden(name))
    except ReadError:
        raise
    except OSError as error:
        raise InputError(f"{container} cannot be listed: {error}") from error


def is_utf8(name: str) -> bool:
    """Whether the name of a file, as Python has read it, is UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def refuse_unsafe_name(container: Path, member: str) -> None:
    """Raises InputError where a name would lead out of its container."""
    unsafe = re.match(r"/|[A-Za-z]:/", member) or re.search(r"[\\\0]", member)
    if unsafe or ".." in member.split("/") or not is_utf8(member):
        raise InputError(
            f"{container}: unsafe file name {member!r}: names must be plain relative paths "
            "with forward slashes and readable characters"
        )


def _refuse_long_listing(path: Path) -> None:
    """Before `zipfile` makes an object of each entry, however many the archive says it has."""
    with path.open("rb") as file:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if not end:
            return
        size, place = end[5], end[9]  # of the listing, and where the record of its end is
        files = 0
        if size <= _MAX_LISTING:
            start = max(0, place - size - _ZIP64_END)
            file.seek(start)
            files = file.read(place - start).count(b"PK\1\2")
    if size > _MAX_LISTING or files > _MAX_FILES:
        raise InputError(
            f"{path} lists more than {_MAX_FILES:,} files, or names too long ({size:,} bytes of "
            f"{_MAX_LISTING:,}): unpack it and give the folder, or divide it"
        )


def _refuse_unreadable(path: Path, entry: zipfile.ZipInfo) -> None:
    problem = ""
    if entry.flag_bits & _ENCRYPTED:
        problem = "is protected by a password: unpack it and give the folder"
    elif entry.compress_type not in _METHODS and not entry.is_dir():
        problem = (
            f"is packed by a method that is not read (number {entry.compress_type}; 9 is "
            "Deflate64, Windows' choice for large archives, 12 bzip2, 14 LZMA): pack by Deflate, "
            "or unpack it and give the folder"
        )
    elif stat.S_ISLNK(entry.external_attr >> 16):
        problem = (
            "is a link, which is not followed in a zip: pack the file itself (`zip` without -y), "
            "or unpack it and give the folder"
        )
    if problem:
        raise InputError(f"{path}: {shown(entry.filename)} {problem}")


def _refuse_bomb(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    size = path.stat().st_size
    packed = sum(entry.compress_size for entry in entries)
    unpacked = sum(entry.file_size for entry in entries)
    problem = ""
    if packed > size:
        problem = f"has {size:,} bytes, and its files {packed:,}: some share their bytes"
    elif unpacked > max(_ANY_RATIO, _MAX_RATIO * size):
        problem = f"is {size:,} bytes that unpack to {unpacked:,}, over {_MAX_RATIO} times as much"
    if problem:
        largest = max(entries, key=lambda entry: entry.file_size)
        raise InputError(
            f"{path} {problem}, as in a zip bomb (the largest is {shown(largest.filename)}, "
            f"{largest.file_size:,} bytes): if you trust it, unpack it and give the folder"
        )


def _refuse_twins(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    names = Counter(entry.filename for entry in entries if not entry.is_dir())
    for name, times in names.items():
        if times > 1 and not _is_hidden(name):
            raise InputError(
                f"{path}: {shown(name)} is in it {times} times, and which is meant cannot be "
                "known: pack it anew"
            )


def _name(entry: zipfile.ZipInfo) -> str:
    name = entry.filename
    if not entry.flag_bits & _UTF8 and not name.isascii():
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    if entry.create_system == _FAT and "/" not in name:
        name = name.replace("\\", "/")
    return name


def _walk(root: Path, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Files below a folder. `above` has device and number of the folders that it lies in."""
    if folder.count("/") > _MAX_DEPTH:
        raise InputError(
            f"{root}: folders are nested too deeply at {shown(folder)}: "
            "expected <group>/<class>/<image>"
        )
    status = (root / folder).stat()
    above = (*above, (status.st_dev, status.st_ino))
    if above[-1] in above[:-1]:
        raise InputError(
            f"{root}: {shown(folder.rstrip('/'))} is a link to a folder that it lies in: remove it"
        )
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            name = f"{folder}{entry.name}"
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # such as that of a link to itself
                is_folder = is_file = False
            if is_folder:
                yield from _walk(root, f"{name}/", above)
            elif is_file or (entry.is_symlink() and not Path(entry.path).exists()):
                # A dangling link is kept: it is one unreadable image, to be counted as such.
                yield name


def _is_hidden(name: str) -> bool:
    return any(
        (part.startswith(".") and part != "..") or part in ("__MACOSX", "Icon\r")
        for part in name.split("/")
    )
