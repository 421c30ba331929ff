"""Lists, reads and checks images in place: `<group>/<class>/<image>` in a folder or a zip."""

import logging
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from data_ingest.errors import InputError
from data_ingest.sources.images import MAX_BYTES, ImageRejected, stored_form
from data_ingest.sources.writers import writer_of

_IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg"})
_MAX_DEPTH: Final = 12
_ZIP_ERRORS: Final = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
_log = logging.getLogger(__name__)


class UnreadableImageError(ImageRejected):
    """The bytes of one image cannot be had from its folder or zip."""

    def __init__(self, message: str) -> None:
        super().__init__("unreadable")
        self.args = (message,)


class ImageFile(NamedTuple):
    """One image where it lies. Picklable; sorts by group, class and writer."""

    group: str
    """`Greek`; empty where the layout has no groups."""
    class_name: str
    """`Greek/character03`, or `digit3` where there are no groups. Unique over groups."""
    writer: int
    """Who drew it, as `writer_of` tells (Omniglot's drawers: 1 to 20); 0 where unknown."""
    container: str
    """Path of the zip, or of the root folder."""
    member: str
    """Path inside the container, with forward slashes."""

    @property
    def uri(self) -> str:
        """`Greek/character03/0394_07.png`: the same wherever, and in what, the image lies.

        Unique in one container. Omniglot's two small background sets share two alphabets; a
        shared image has the same `uri` in both.
        """
        return f"{self.class_name}/{PurePosixPath(self.member).name}"

    @property
    def path(self) -> str:
        """Where it lies, for people: container and member."""
        return f"{self.container}/{self.member}"


def list_images(container: Path, writer_pattern: str | None = None) -> list[ImageFile]:
    """Lists the images of a folder or zip, sorted, without reading them.

    Leading folders common to all images are stripped while more than `<group>/<class>` is left.
    Hidden files, `__MACOSX` and files that are not named `.png`, `.jpg` or `.jpeg` are ignored.

    Args:
      container: the folder or zip.
      writer_pattern: of `writer_of`, where the images are not Omniglot's.

    Raises:
      InputError: the container cannot be read, is empty, holds no images, holds images at
        different depths, or has names that would lead out of it.
    """
    names = list_members(container)
    members = [name for name in names if PurePosixPath(name).suffix.lower() in _IMAGE_SUFFIXES]
    if not names:
        raise InputError(f"{container} is empty: expected <group>/<class>/<image> inside")
    if not members:
        found = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
        kinds = ", ".join(f"{count} x {kind}" for kind, count in found.most_common(5))
        raise InputError(f"{container} holds no PNG or JPEG images (found {kinds})")
    for member in members:
        refuse_unsafe_name(container, member)
    root = _common_root(container, members)
    images = sorted(_image_file(container, root, member, writer_pattern) for member in members)
    _log.debug("%s: %d images, %d other files", container, len(images), len(names) - len(members))
    return images


def list_members(container: Path) -> list[str]:
    """Paths of all files in a folder or zip, sorted, but hidden ones and `__MACOSX`.

    Raises:
      InputError: the container cannot be read.
    """
    if container.is_file():
        try:
            with zipfile.ZipFile(container) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        except (OSError, *_ZIP_ERRORS) as error:
            raise InputError(
                f"{container} cannot be read as a zip archive ({error}): "
                "give a folder or an undamaged zip of images"
            ) from error
        if any(entry.flag_bits & 0x1 for entry in entries):
            raise InputError(
                f"{container} is protected by a password: unpack it and give the folder"
            )
        return sorted({entry.filename for entry in entries if not _is_hidden(entry.filename)})
    if not container.exists():
        raise InputError(f"{container} does not exist: give a folder or a zip of images")
    if not container.is_dir():
        raise InputError(f"{container} is neither a folder nor a zip of images")
    try:
        return sorted(_walk(container, ""))
    except OSError as error:
        raise InputError(f"{container} cannot be listed: {error}") from error


def refuse_unsafe_name(container: Path, member: str) -> None:
    """Raises InputError where a name would lead out of its container."""
    unsafe = member.startswith("/") or "\\" in member or "\0" in member or ".." in member.split("/")
    if unsafe or any("\ud800" <= letter <= "\udfff" for letter in member):
        raise InputError(
            f"{container}: unsafe file name {member!r}: names must be plain relative paths "
            "with forward slashes and readable characters"
        )


def refuse_useless_pattern(images: Sequence[ImageFile], writer_pattern: str) -> None:
    """Raises InputError where no image's writer is known by the pattern."""
    if not any(image.writer for image in images):
        example = f", such as {images[0].path}," if images else ""
        raise InputError(
            f"writer pattern {writer_pattern}: none of {len(images)} images{example} has a name in "
            "which it finds a writer: mend the pattern, or leave it out"
        )


class ImageReader(ExitStack):
    """Reads images one after another, keeping the zips that they lie in open.

    Not safe to share between threads; every worker makes its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._zips: dict[str, zipfile.ZipFile] = {}

    def read(self, image: ImageFile) -> bytes:
        """Returns the encoded image, at most `MAX_BYTES` + 1 bytes of it.

        Raises:
          UnreadableImageError: the file or member is missing, damaged, encrypted or not readable.
        """
        try:
            container = Path(image.container)
            if container.is_dir():
                with (container / image.member).open("rb") as stream:
                    return stream.read(MAX_BYTES + 1)
            if image.container not in self._zips:
                archive = self.enter_context(zipfile.ZipFile(image.container))
                self._zips[image.container] = archive
            with self._zips[image.container].open(image.member) as member:
                return member.read(MAX_BYTES + 1)
        except (OSError, KeyError, *_ZIP_ERRORS) as error:
            raise UnreadableImageError(f"{image.container}: {image.member}: {error}") from error

    def image(self, file: ImageFile) -> bytes:
        """Returns an image in its stored form.

        Raises:
          ImageRejected: it cannot be read, or not be used: see `stored_form`.
        """
        return stored_form(self.read(file))

    def sound(
        self, files: Iterable[ImageFile], rejected: list[tuple[ImageFile, str]] | None = None
    ) -> Iterator[tuple[int, ImageFile, bytes]]:
        """Position, file and stored form of each image that can be used.

        The others go to `rejected`, with the reason as `ImageRejected` gives it.
        """
        for position, file in enumerate(files):
            try:
                data = self.image(file)
            except ImageRejected as error:
                if rejected is not None:
                    rejected.append((file, error.reason))
            else:
                yield position, file, data


def _walk(root: Path, folder: str) -> Iterator[str]:
    if folder.count("/") > _MAX_DEPTH:
        raise InputError(
            f"{root}: folders are nested too deeply at {folder}: "
            "expected <group>/<class>/<image>; is there a link that points back up?"
        )
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(root, f"{folder}{entry.name}/")
            elif entry.is_file() or entry.is_symlink():
                # A dangling link is kept: it is one unreadable image, to be counted as such.
                yield f"{folder}{entry.name}"


def _is_hidden(name: str) -> bool:
    return any(
        (part.startswith(".") and part != "..") or part == "__MACOSX" for part in name.split("/")
    )


def _common_root(container: Path, members: Sequence[str]) -> int:
    """Number of leading folders that all members share and that are not group or class."""
    folders = [member.split("/")[:-1] for member in members]
    root = 0
    while min(len(parts) for parts in folders) - root > 2 and len({p[root] for p in folders}) == 1:
        root += 1
    depths: dict[int, str] = {}
    for parts, member in zip(folders, members, strict=True):
        depths.setdefault(len(parts) - root, member)
    problem = ""
    if len(depths) > 1:
        shallow, deep = depths[min(depths)], depths[max(depths)]
        problem = f"images lie at different depths, such as {shallow} and {deep}"
    elif 0 in depths:
        problem = f"images lie outside any class folder, such as {members[0]}"
    elif max(depths) > 2:
        problem = f"images lie too deep, such as {members[0]}"
    if problem:
        raise InputError(
            f"{container}: {problem}: expected <group>/<class>/<image> or <class>/<image>"
        )
    return root


def _image_file(container: Path, root: int, member: str, writer_pattern: str | None) -> ImageFile:
    *folders, name = member.split("/")[root:]
    class_name = "/".join(folders)
    return ImageFile(
        group=folders[0] if len(folders) == 2 else "",
        class_name=class_name,
        writer=writer_of(f"{class_name}/{name}", writer_pattern),
        container=str(container),
        member=member,
    )
