"""Opens zips, whoever packed them, and lists the files in folders and zips."""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
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
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip; close it after use.

    Backslashes that Windows wrote between folders become slashes. Names that are UTF-8 without
    saying so, as macOS writes them, are read as that; others are CP437, as the format has it.

    Raises:
      InputError: it is missing, damaged, protected by a password, packed by a method that Python
        does not know, or may not be read.
      ReadError: as `reading`.
    """
    try:
        with reading(str(path)):
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
            _refuse_locked(path, entry)
            entry.filename = _name(entry)
    except InputError:
        archive.close()
        raise
    archive.NameToInfo = {entry.filename: entry for entry in archive.infolist()}
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
    unsafe = member.startswith("/") or "\\" in member or "\0" in member or ".." in member.split("/")
    if unsafe or not is_utf8(member):
        raise InputError(
            f"{container}: unsafe file name {member!r}: names must be plain relative paths "
            "with forward slashes and readable characters"
        )


def _refuse_locked(path: Path, entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & _ENCRYPTED:
        raise InputError(f"{path} is protected by a password: unpack it and give the folder")
    if entry.compress_type not in _METHODS and not entry.is_dir():
        raise InputError(
            f"{path} is packed by a method that Python cannot unpack (number "
            f"{entry.compress_type}; 9 is Deflate64, Windows' choice for large archives): unpack "
            "it and give the folder"
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
