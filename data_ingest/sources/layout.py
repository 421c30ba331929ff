"""Lists, reads and checks images in place: `<group>/<class>/<image>` in a folder or a zip."""

import errno
import logging
import mimetypes
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from data_ingest.errors import InputError, ReadError, reading, shown
from data_ingest.sources.containers import ZIP_ERRORS, list_members, open_zip, refuse_unsafe_name
from data_ingest.sources.images import MAX_FILE_BYTES, ImageRejected, stored_form
from data_ingest.sources.kinds import ANY_KIND, Form
from data_ingest.sources.writers import writer_of

IMAGE_SUFFIXES: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
) | {".pgm", ".ppm", ".pnm", ".pbm", ".avif", ".heic", ".heif"}
"""Of the formats that `stored_form` reads. Other files are looked into, too, where images lie."""

_OTHER_SUFFIXES: Final = frozenset(
    {".aae", ".db", ".ini", ".log", ".md", ".toml", ".xmp", ".yaml", ".yml"}
) | {
    suffix
    # Of Python's own table, not the machine's, which differ.
    for suffix, kind in mimetypes.MimeTypes().types_map[True].items()
    if not kind.startswith("image/")
}
"""Ignored: texts, tables, sound, films, what cameras and Windows lay beside images."""
_GENUINE: Final = "genuine"
_FORGED: Final = frozenset({"forged", "forgery", "forgeries", "skilled"})
"""Folders of a writer's signatures, and of what others made to look like them."""
_MAX_OPEN: Final = 100
"""Zips; a process may often have no more than 1,024 files open."""
_NAMED: Final = 5
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
        return f"{self.class_name}/{self.member.rpartition('/')[2]}"

    @property
    def path(self) -> str:
        """Where it lies, for people: container and member."""
        return f"{self.container}/{self.member}"


def list_images(container: Path, writer_pattern: str | None = None) -> list[ImageFile]:
    """Lists the images of a folder or zip, sorted, without reading them.

    Leading folders common to all images are stripped while more than `<group>/<class>` is left.
    Names of groups and classes are in Unicode's normal form C: what macOS spells otherwise is the
    same class.

    What is an image shows when it is read: files that lie where images do are listed whatever
    their names end in, but for endings of texts, tables and the like (`_OTHER_SUFFIXES`). Those
    are ignored, and so are hidden files, `__MACOSX` and other files elsewhere.

    Args:
      container: the folder or zip.
      writer_pattern: of `writer_of`, where the images are not Omniglot's.

    Raises:
      InputError: the container cannot be read, is empty, holds no images, holds images at
        different depths, or has names that would lead out of it.
      ReadError: as `data_ingest.errors.reading`.
    """
    return _survey(container, writer_pattern).images


def look_over(containers: Iterable[Path], writer_pattern: str | None = None) -> list[ImageFile]:
    """Lists the images of several folders and zips, and logs what people should know of them.

    That is which files are ignored, which may be no images, and which classes are so named that
    one may have been meant.

    Args:
      containers: the folders and zips.
      writer_pattern: as of `list_images`.

    Raises:
      InputError, ReadError: as `list_images`.
    """
    images: list[ImageFile] = []
    ignored: Counter[str] = Counter()
    for container in containers:
        survey = _survey(container, writer_pattern)
        images += survey.images
        ignored += survey.ignored
    odd = Counter(map(ending, (file.member for file in images)))
    for suffix in IMAGE_SUFFIXES:
        del odd[suffix]
    if ignored:
        _log.info("Ignored, because not named as images: %s", by_ending(ignored))
    if odd:
        _log.info("Not named as images, but looked at: %s", by_ending(odd))
    spellings: dict[str, set[str]] = defaultdict(set)
    for file in images:
        spellings[file.class_name.casefold()].add(file.class_name)
    alike = [" and ".join(sorted(names)) for names in spellings.values() if len(names) > 1]
    if alike:
        more = f" and {len(alike) - _NAMED} more" if len(alike) > _NAMED else ""
        named = ", ".join(map(shown, sorted(alike)[:_NAMED]))
        _log.warning("Classes told apart though only case differs: %s%s", named, more)
    return images


def forged_classes(class_names: Iterable[str]) -> set[str]:
    """The classes that are forgeries of another: `<writer>/forged` beside `<writer>/genuine`.

    Case does not matter, and `forgery`, `forgeries` or `skilled` mean the same.
    """
    parts = {name: name.casefold().rpartition("/") for name in class_names}
    writers = {group for group, _, last in parts.values() if last == _GENUINE}
    return {
        name
        for name, (group, _, last) in parts.items()
        if group and last in _FORGED and group in writers
    }


def normal_form(name: str) -> str:
    """A name of a group or class in the spelling by which names are compared."""
    return unicodedata.normalize("NFC", name)


def ending(name: str) -> str:
    """`.png` of `a/b/1.PNG`; empty where there is none."""
    file = name.rpartition("/")[2]
    at = file.rfind(".")
    return file[at:].lower() if 0 < at < len(file) - 1 else ""


def by_ending(counts: Counter[str]) -> str:
    """`12 x .txt, 1 x no ending`: the most frequent endings."""
    told = [f"{count:,} x {shown(suffix) or 'no ending'}" for suffix, count in counts.most_common()]
    more = f" and {len(told) - _NAMED} other endings" if len(told) > _NAMED else ""
    return ", ".join(told[:_NAMED]) + more


def refuse_useless_pattern(images: Sequence[ImageFile], writer_pattern: str) -> None:
    """Raises InputError where no image's writer is known by the pattern."""
    if not any(image.writer for image in images):
        example = f", such as {images[0].path}," if images else ""
        raise InputError(
            f"writer pattern {writer_pattern}: none of {len(images)} images{example} has a name in "
            "which it finds a writer: mend the pattern, or leave it out"
        )


class ImageReader:
    """Reads images one after another, keeping the zips that they lie in open, a hundred at most.

    Not safe to share between threads; every worker makes its own.
    """

    def __init__(self, form: Form = ANY_KIND) -> None:
        """`form` is that in which images are stored."""
        self._form = form
        self._zips: dict[str, zipfile.ZipFile] = {}
        """The one used last is at the end."""

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all zips; reading on opens them again."""
        while self._zips:
            self._zips.popitem()[1].close()

    def read(self, image: ImageFile) -> bytes:
        """Returns the encoded image as it lies there, at most `MAX_FILE_BYTES` + 1 of its bytes.

        Raises:
          UnreadableImageError: the file or member is missing, damaged or encrypted.
          InputError: it may not be read, or its zip is no longer there, or damaged as a whole.
          ReadError: as `data_ingest.errors.reading`: nothing can be said of the image.
        """
        try:
            with reading(image.path):
                if image.container not in self._zips and Path(image.container).is_dir():
                    with Path(image.container, image.member).open("rb") as stream:
                        return stream.read(MAX_FILE_BYTES + 1)
                with self._zip(image.container).open(image.member) as member:
                    return member.read(MAX_FILE_BYTES + 1)
        except (InputError, ReadError):
            raise
        except (OSError, KeyError, *ZIP_ERRORS) as error:
            raise UnreadableImageError(f"{image.container}: {image.member}: {error}") from error

    def _zip(self, path: str) -> zipfile.ZipFile:
        archive = self._zips.pop(path, None)
        if archive is None:
            if len(self._zips) >= _MAX_OPEN:
                self._zips.pop(next(iter(self._zips))).close()
            try:
                archive = open_zip(Path(path))
            except ReadError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._zips:
                    raise
                self.close()
                archive = open_zip(Path(path))
        self._zips[path] = archive
        return archive

    def image(self, file: ImageFile) -> bytes:
        """Returns an image in its stored form.

        Raises:
          ImageRejected: it cannot be read, or not be used: see `stored_form`.
          InputError, ReadError: as `read`.
        """
        with reading(file.path):
            return stored_form(self.read(file), self._form)

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


class _Survey(NamedTuple):
    images: list[ImageFile]
    """Sorted."""
    ignored: Counter[str]
    """Other files, by ending."""


def _survey(container: Path, writer_pattern: str | None) -> _Survey:
    names = list_members(container)
    if not names:
        raise InputError(f"{container} is empty: expected <group>/<class>/<image> inside")
    endings = Counter(map(ending, names))
    named = [name for name in names if ending(name) in IMAGE_SUFFIXES]
    others = [name for name in names if ending(name) not in IMAGE_SUFFIXES | _OTHER_SUFFIXES]
    members = named or others
    if not members:
        inside = "; zips inside it are not opened" if ".zip" in endings else ""
        raise InputError(f"{container} holds no images (found {by_ending(endings)}){inside}")
    for member in members:
        refuse_unsafe_name(container, member)
    root = _common_root(container, members)
    if named:
        top = named[0].split("/")[:root]
        depth = named[0].count("/")
        for name in others:
            if name.count("/") == depth and name.split("/")[:root] == top:
                refuse_unsafe_name(container, name)
                members.append(name)
    images = sorted(_image_file(container, root, member, writer_pattern) for member in members)
    return _Survey(images, endings - Counter(map(ending, members)))


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
    class_name = normal_form("/".join(folders))
    return ImageFile(
        group=normal_form(folders[0]) if len(folders) == 2 else "",
        class_name=class_name,
        writer=writer_of(f"{class_name}/{name}", writer_pattern),
        container=str(container),
        member=member,
    )
