"""Reads the images that the commands of a gallery are given: files, folders and zips."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_ingest.errors import InputError, naming
from data_ingest.progress import counted

if TYPE_CHECKING:
    from data_ingest.sources.kinds import Crop
    from data_ingest.sources.layout import ImageFile
    from serving.gallery import CohortImage

Rejected = list[tuple["ImageFile", str]]
"""Images that cannot be used, and why."""


class Picture(NamedTuple):
    """An image in a folder or zip.

    Attributes:
      name: of whom it shows, by the folder that it lies in.
      path: for people.
      content: in the form that galleries keep.
    """

    name: str
    path: str
    content: bytes


class Question(NamedTuple):
    """An image of which is asked whom it shows: its content, or why it cannot be used."""

    path: str
    content: bytes
    problem: str = ""


def read_image(path: Path, crop: "Crop | None" = None) -> bytes:
    """The image in the form that galleries keep.

    Raises:
      InputError: it cannot be used, or is not there.
    """
    from serving.client.images import encode_image
    from serving.client.types import InvalidImage

    try:
        with naming(path):
            return encode_image(path, crop=crop)
    except InvalidImage as error:
        raise InputError(error.message) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: {error.strerror}; give the file of an image") from error


def is_container(path: Path) -> bool:
    """Whether this is a folder or a zip of images and not an image."""
    return path.is_dir() or path.suffix.lower() == ".zip"


def images_of_names(container: Path, rejected: Rejected) -> "list[ImageFile]":
    """The images in `<name>/<image>` of a folder or zip; the class of each is the name.

    A folder that all names lie in, as in the zip of a folder, is no part of them. Of signatures in
    `<name>/genuine/` and `<name>/forged/` the genuine ones are taken; `rejected` gets the others.

    Raises:
      InputError: it cannot be read, or holds no images laid out like that.
    """
    from data_ingest.sources.layout import forged_classes, look_over

    files = look_over([container])
    if forged := forged_classes({file.class_name for file in files}):
        rejected += [(file, "a forgery") for file in files if file.class_name in forged]
        files = [file for file in files if file.class_name not in forged]
        return [file._replace(class_name=_writer(file.class_name)) for file in files]
    top = files[0].group
    if not top or any(file.group != top for file in files):
        return files
    return [file._replace(class_name=file.class_name.removeprefix(f"{top}/")) for file in files]


def pictures(
    files: "Sequence[ImageFile]", rejected: Rejected, crop: "Crop | None"
) -> Iterator[Picture]:
    """The images of `images_of_names`, read one after another; `rejected` gets the others."""
    from data_ingest.sources.kinds import ANY_KIND
    from data_ingest.sources.layout import ImageReader
    from serving.client.images import Cropped

    with ImageReader(ANY_KIND._replace(crop=crop)) as reader:
        for _, file, content in reader.sound(files, rejected):
            kept = content if crop is None else Cropped(content)
            yield Picture(file.class_name, file.path, kept)


def cohort(container: Path, rejected: Rejected, crop: "Crop | None") -> "list[CohortImage]":
    """The outsiders in `<outsider>/<image>` of a folder or zip: crops, or files as they come."""
    from data_ingest.sources.layout import ImageReader
    from serving.gallery import CohortImage

    files = images_of_names(container, rejected)
    if crop is not None:
        return [CohortImage(one.name, one.content) for one in pictures(files, rejected, crop)]
    with ImageReader() as reader:
        listed = counted(files, "Reading images", len(files))
        return [
            CohortImage(file.class_name, reader.read(file))
            for _, file, _ in reader.sound(listed, rejected)
        ]


def images_anywhere(paths: Sequence[Path]) -> "list[ImageFile]":
    """The images in files, folders and zips, wherever they lie in these.

    Raises:
      InputError: one of the paths is not there, or holds nothing named as an image.
    """
    from data_ingest.sources.layout import ImageFile

    found: list[ImageFile] = []
    for path in paths:
        if is_container(path):
            found += _inside(path)
        elif path.is_file():
            found.append(ImageFile("", "", 0, str(path.parent), path.name))
        else:
            raise InputError(f"{path} is not there: give images, or folders or zips of images")
    return found


def questions(files: "Sequence[ImageFile]", crop: "Crop | None") -> Iterator[Question]:
    """The images of `images_anywhere`, read one after another."""
    from data_ingest.sources.images import ImageRejected
    from data_ingest.sources.kinds import ANY_KIND
    from data_ingest.sources.layout import ImageReader
    from serving.client.images import Cropped

    with ImageReader(ANY_KIND._replace(crop=crop)) as reader:
        for file in files:
            path = str(Path(file.container, file.member))
            try:
                content = reader.image(file)
                yield Question(path, content if crop is None else Cropped(content))
            except ImageRejected as error:
                yield Question(path, b"", error.reason)


def told(rejected: Rejected) -> str:
    """Why images are left out, with the number of each reason."""
    from data_ingest.records.catalog import count_reasons, told_reasons

    return told_reasons(count_reasons((bad.member, reason) for bad, reason in rejected))


def _writer(class_name: str) -> str:
    """`ada` of `ada/genuine`."""
    group, _, last = class_name.rpartition("/")
    return group if last.casefold() == "genuine" else class_name


def _inside(container: Path) -> "list[ImageFile]":
    """What is named as an image there, at any depth."""
    from data_ingest.sources.containers import list_members, refuse_unsafe_name
    from data_ingest.sources.layout import IMAGE_SUFFIXES, ImageFile, ending

    members = [name for name in list_members(container) if ending(name) in IMAGE_SUFFIXES]
    if not members:
        raise InputError(f"{container} holds no images")
    for member in members:
        refuse_unsafe_name(container, member)
    return [ImageFile("", "", 0, str(container), member) for member in members]
