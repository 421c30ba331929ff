"""`oneshot gallery`: identities are enrolled by name, recognised and forgotten.

`verify` exits with `ExitCode.DIFFERENT` for "not the same": a script that opens a door on success
opens it for nobody else, whatever went wrong. `identify` exits with 0 for someone unknown too: the
question was answered.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from rich.console import Console, RenderableType
from rich.progress import Progress

from data_ingest.errors import InputError, naming
from pipeline.cli.shared import Context, Handler, add_command, named_path, table
from pipeline.runs.status import ExitCode

if TYPE_CHECKING:
    from serving.gallery import CohortImage, Gallery, Identity
    from serving.gallery.embedder import Embedder

_PAGE: Final = 1000
_BASES: Final = {
    "model": "the identities held out when the model was trained",
    "cohort": "the outsiders given with --images",
    "gallery": "those enrolled",
    "scores": "the model's scores alone",
}


def add_parsers(commands: Any) -> None:
    """Adds the group to the commands of `oneshot`."""
    gallery = commands.add_parser("gallery", help="recognise identities by one image of each")
    actions = gallery.add_subparsers(required=True, metavar="ACTION")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--gallery",
        default="output/gallery.db",
        metavar="FILE_OR_URL",
        help="SQLite file, or postgresql://user:password@host/database (%(default)s)",
    )
    where.add_argument(
        "--model",
        default="output/serving_model/siamese",
        metavar="DIR_OR_URL",
        help="folder of pushed versions or of one version, or http://host:port of a server "
        "(%(default)s)",
    )
    where.add_argument(
        "--false-accept-rate",
        type=float,
        metavar="F",
        help="chance that an outsider is taken for someone (0.01)",
    )

    def add(name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
        return add_command(actions, name, handler, where, text=text)

    enroll = add("enroll", _enroll, "enrol images under a name, one or more")
    enroll.add_argument("name", metavar="NAME")
    enroll.add_argument("images", metavar="IMAGE", type=named_path, nargs="+")
    identify = add("identify", _identify, "who is this?")
    identify.add_argument("image", metavar="IMAGE", type=named_path)
    identify.add_argument("--limit", type=int, default=5, help="candidates shown (%(default)s)")
    verify = add("verify", _verify, "is this the identity of that name? exit code 0 yes, 4 no")
    verify.add_argument("name", metavar="NAME")
    verify.add_argument("image", metavar="IMAGE", type=named_path)
    remove = add("remove", _remove, "forget a name, its images and its vectors")
    remove.add_argument("name", metavar="NAME")
    add("list", _list, "who is enrolled")
    add("status", _status, "what it holds, its model, what it is calibrated on")
    add("rebuild", _rebuild, "move to the newest model; interrupted, it continues")
    calibrate = add("calibrate", _calibrate, "learn how alike different identities look")
    calibrate.add_argument(
        "--images",
        type=named_path,
        metavar="DIR_OR_ZIP",
        help="of outsiders, who are not enrolled, <outsider>/<image> (those enrolled)",
    )
    add("erase", _erase, "clear the database's files of what was removed (PostgreSQL: slow)")


def _enroll(context: Context) -> None:
    from serving.gallery import AlreadyEnrolled

    paths = context.options.images
    images = [_read(path) for path in paths]
    with _open(context) as (gallery, _):
        try:
            enrolment = gallery.enroll(context.options.name, images)
        except AlreadyEnrolled as error:
            raise InputError(f"{paths[error.place]}: {error.message}") from error
        namesakes = gallery.namesakes(enrolment.name)
        advice = gallery.status().threshold.advice
    text = f"{enrolment.name}: {_images(enrolment.added)} enrolled"
    if enrolment.known:
        text += f", {enrolment.known} there already"
    if namesakes:
        others = ", ".join(map(repr, namesakes))
        _advise(f"names that differ in upper case are two identities; enrolled too: {others}")
    _advise(advice)
    _show(context, enrolment, text)


def _identify(context: Context) -> None:
    image = _read(context.options.image)
    with _open(context) as (gallery, _):
        found = gallery.identify(image, limit=context.options.limit)
        advice = gallery.status().threshold.advice
    _advise(advice)
    candidates = (
        f"  {one.name}: score {one.score:.4f}, logit {one.logit:.2f}, "
        f"{'above' if one.logit > found.threshold else 'below'} the threshold {found.threshold:.2f}"
        for one in found.candidates
    )
    _show(context, found, found.name if found.name is not None else "unknown", *candidates)


def _verify(context: Context) -> ExitCode:
    image = _read(context.options.image)
    with _open(context) as (gallery, _):
        found = gallery.verify(context.options.name, image)
    _show(
        context,
        found,
        f"{'same' if found.same else 'different'}: score {found.score:.4f}, logit "
        f"{found.logit:.2f}, threshold {found.threshold:.2f}",
    )
    return ExitCode.DONE if found.same else ExitCode.DIFFERENT


def _remove(context: Context) -> None:
    with _open(context) as (gallery, _):
        removal = gallery.remove(context.options.name)
    if not removal.images:
        raise InputError(f"nobody is enrolled as {removal.name!r}; see `oneshot gallery list`")
    text = f"{removal.name}: {_images(removal.images)} removed"
    if not removal.erased:
        text += "; the database's files may hold them until `oneshot gallery erase`"
    _show(context, removal, text)


def _list(context: Context) -> None:
    from serving.gallery.records import reply_of

    with _open(context) as (gallery, _):
        identities: list[Identity] = []
        while page := gallery.identities(
            after=identities[-1].name if identities else "", limit=_PAGE
        ):
            identities += page
    replies = [reply_of(identity) for identity in identities]
    rows = ((one["name"], str(len(one["images"])), one["created"]) for one in replies)
    context.show(
        replies, table(("name", "images", "since"), rows, right=("images",), folded=("name",))
    )


def _status(context: Context) -> None:
    from serving.gallery.records import reply_of

    with _open(context) as (gallery, _):
        reply = reply_of(gallery.status())
    calibration = {f"calibration {key}": value for key, value in reply["calibration"].items()}
    told = {key: value for key, value in reply.items() if key != "calibration"} | calibration
    context.show(reply, *(f"{key}: {value}" for key, value in told.items()))


def _rebuild(context: Context) -> None:
    with (
        _open(context) as (gallery, console),
        Progress(console=Console(file=console), transient=True) as progress,
    ):
        bar = progress.add_task("embedding")
        rebuilt = gallery.rebuild(
            lambda done, total: progress.update(bar, completed=done, total=total)
        )
    text = (
        f"the gallery is of version {rebuilt.version} already"
        if rebuilt.before == rebuilt.version
        else f"the gallery answers with version {rebuilt.version} "
        f"({_images(rebuilt.images)} embedded; before: {rebuilt.before or 'none'})"
    )
    _show(context, rebuilt, text)


def _calibrate(context: Context) -> None:
    from serving.gallery.records import calibration_of

    images = context.options.images
    cohort = None if images is None else _cohort(images)
    with _open(context) as (gallery, _):
        status = gallery.calibrate(cohort)
    calibration = calibration_of(status)
    bound = status.threshold.logit
    text = f"the threshold is {bound:.2f} now, by {_BASES[status.threshold.basis]}"
    if calibration["people"]:
        text += f" ({calibration['pairs']} pairs, {calibration['people']} identities)"
    _advise(status.threshold.advice)
    context.show({**calibration, "threshold": bound}, text)


def _erase(context: Context) -> None:
    with _open(context) as (gallery, _):
        erased = gallery.erase()
    if not erased:
        raise RuntimeError("another process keeps the database busy: try again later")
    context.show({"erased": True}, "nothing of what was removed is left in the files")


def _advise(advice: str | None) -> None:
    """What is to be known besides; apart from the answer, which scripts read."""
    if advice is not None:
        print(f"note: {advice}", file=sys.stderr)


def _cohort(images: Path) -> "list[CohortImage]":
    from data_ingest.records.catalog import count_reasons, told_reasons
    from data_ingest.sources.layout import ImageFile, ImageReader, look_over
    from serving.gallery import CohortImage

    rejected: list[tuple[ImageFile, str]] = []
    with ImageReader() as reader:
        cohort = [
            CohortImage(f"{file.group}/{file.class_name}", content)
            for _, file, content in reader.sound(look_over([images]), rejected)
        ]
    reasons = told_reasons(count_reasons((bad.member, reason) for bad, reason in rejected))
    if not cohort:
        raise InputError(f"--images {images}: none of the images can be used: {reasons}")
    _advise(f"images left out: {reasons}" if rejected else None)
    return cohort


def _read(path: Path) -> bytes:
    """The image in the form that galleries keep."""
    from serving.client.images import encode_image
    from serving.client.types import InvalidImage

    try:
        with naming(path):
            return encode_image(path)
    except InvalidImage as error:
        raise InputError(error.message) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: {error.strerror}; give the file of an image") from error


@contextmanager
def _open(context: Context) -> "Iterator[tuple[Gallery, TextIO]]":
    """The gallery, and stderr, which is closed to TensorFlow's C++ code meanwhile."""
    from serving.errors import Code, ServingError
    from serving.gallery import open_gallery
    from serving.gallery.gallery import FALSE_ACCEPT_RATE

    rate = context.options.false_accept_rate
    with context.quiet_libraries() as console:
        try:
            with open_gallery(
                context.options.gallery,
                _embedder(context.options.model),
                false_accept_rate=FALSE_ACCEPT_RATE if rate is None else rate,
                # One question: reading the whole gallery would take longer than to search it.
                in_memory=False,
            ) as gallery:
                yield gallery, console
        except ServingError as error:
            if error.code in (
                Code.INVALID_ARGUMENT,
                Code.NOT_FOUND,
                Code.ALREADY_EXISTS,
                Code.FAILED_PRECONDITION,
            ):
                raise InputError(error.message) from error
            raise RuntimeError(error.message) from error


def _embedder(model: str) -> "Embedder":
    if model.startswith(("http://", "https://")):
        from serving.client import Client
        from serving.gallery.embedder import ServerEmbedder

        try:
            return ServerEmbedder(Client(model))
        except ValueError as error:
            raise InputError(f"--model {model}: {error}") from error
    from serving.gallery.embedder import FolderEmbedder

    return FolderEmbedder(Path(model))


def _show(context: Context, answer: Any, *told: RenderableType) -> None:
    from serving.gallery.records import reply_of

    context.show(reply_of(answer), *told)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
