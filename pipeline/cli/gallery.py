"""`oneshot gallery`: people by name, enrolled, recognised and forgotten.

Exit codes are those of `oneshot`, and 4 from `verify` for "not the same": a script that opens a
door on success opens it for nobody else, whatever went wrong. `identify` exits with 0 for someone
unknown too: the question was answered.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from data_ingest.errors import InputError, naming
from pipeline.runs.logs import run_logging

if TYPE_CHECKING:
    from serving.gallery import Gallery, Identity
    from serving.gallery.embedder import Embedder

EXIT_DONE: Final = 0
EXIT_DIFFERENT: Final = 4
DEFAULT_GALLERY: Final = "output/gallery.db"
DEFAULT_MODEL: Final = "output/serving_model/siamese"
PAGE: Final = 1000


def add_parser(commands: Any, parents: Sequence[argparse.ArgumentParser]) -> None:
    """Adds `gallery` to the subcommands of `oneshot`.

    Args:
      commands: what `add_subparsers` returned.
      parents: parsers of `--json` and `--verbose`.
    """
    gallery = commands.add_parser("gallery", help="recognise people by one image of each")
    actions = gallery.add_subparsers(required=True, metavar="ACTION")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--gallery",
        default=DEFAULT_GALLERY,
        metavar="FILE_OR_URL",
        help="SQLite file, or postgresql://user:password@host/database (%(default)s)",
    )
    where.add_argument(
        "--model",
        default=DEFAULT_MODEL,
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

    def add(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(
            name, parents=[*parents, where], help=text, description=text
        )
        parser.set_defaults(command=command)
        return parser

    enroll = add("enroll", _enroll, "enrol images under a name, one or more")
    enroll.add_argument("name", metavar="NAME")
    enroll.add_argument("images", metavar="IMAGE", type=Path, nargs="+")
    identify = add("identify", _identify, "who is this?")
    identify.add_argument("image", metavar="IMAGE", type=Path)
    identify.add_argument("--limit", type=int, default=5, help="candidates shown (%(default)s)")
    verify = add("verify", _verify, "is this the person of that name? exit code 0 yes, 4 no")
    verify.add_argument("name", metavar="NAME")
    verify.add_argument("image", metavar="IMAGE", type=Path)
    remove = add("remove", _remove, "forget a name, its images and its vectors")
    remove.add_argument("name", metavar="NAME")
    add("list", _list, "who is enrolled")
    add("status", _status, "what it holds, its model, what it is calibrated on")
    add("rebuild", _rebuild, "move to the newest model; interrupted, it continues")
    calibrate = add("calibrate", _calibrate, "learn how alike different people look")
    calibrate.add_argument(
        "--images",
        type=Path,
        metavar="DIR_OR_ZIP",
        help="of people who are not enrolled, <person>/<image> (those enrolled)",
    )
    add("erase", _erase, "clear the database's files of what was removed (PostgreSQL: slow)")


def _enroll(arguments: argparse.Namespace) -> int:
    images = [_read(path) for path in arguments.images]
    with _open(arguments) as gallery:
        enrolment = gallery.enroll(arguments.name, images)
        advice = gallery.status().threshold.advice
    text = f"{enrolment.name}: {_images(enrolment.added)} enrolled"
    if enrolment.known:
        text += f", {enrolment.known} there already"
    _advise(advice)
    return _show(arguments, enrolment, text)


def _identify(arguments: argparse.Namespace) -> int:
    image = _read(arguments.image)
    with _open(arguments) as gallery:
        found = gallery.identify(image, limit=arguments.limit)
        advice = gallery.status().threshold.advice
    _advise(advice)
    lines = [found.name if found.name is not None else "unknown"]
    for candidate in found.candidates:
        mark = "above" if candidate.logit > found.threshold else "below"
        lines.append(
            f"  {candidate.name}: score {candidate.score:.4f}, logit {candidate.logit:.2f}, "
            f"{mark} the threshold {found.threshold:.2f}"
        )
    return _show(arguments, found, "\n".join(lines))


def _verify(arguments: argparse.Namespace) -> int:
    image = _read(arguments.image)
    with _open(arguments) as gallery:
        found = gallery.verify(arguments.name, image)
    _show(
        arguments,
        found,
        f"{'same' if found.same else 'different'}: score {found.score:.4f}, logit "
        f"{found.logit:.2f}, threshold {found.threshold:.2f}",
    )
    return EXIT_DONE if found.same else EXIT_DIFFERENT


def _remove(arguments: argparse.Namespace) -> int:
    with _open(arguments) as gallery:
        removal = gallery.remove(arguments.name)
    if not removal.images:
        raise InputError(f"nobody is enrolled as {removal.name!r}; see `oneshot gallery list`")
    text = f"{removal.name}: {_images(removal.images)} removed"
    if not removal.erased:
        text += "; the database's files may hold them until `oneshot gallery erase`"
    return _show(arguments, removal, text)


def _list(arguments: argparse.Namespace) -> int:
    from serving.gallery.records import reply_of

    with _open(arguments) as gallery:
        identities: list[Identity] = []
        while page := gallery.identities(
            after=identities[-1].name if identities else "", limit=PAGE
        ):
            identities += page
    replies = [reply_of(identity) for identity in identities]
    if arguments.json:
        return _print_json(replies)
    table = Table()
    table.add_column("name")
    table.add_column("images", justify="right")
    table.add_column("since")
    for reply in replies:
        # Names are anything, and must not be taken for markup.
        table.add_row(Text(reply["name"]), str(len(reply["images"])), reply["created"])
    Console(highlight=False).print(table)
    return EXIT_DONE


def _status(arguments: argparse.Namespace) -> int:
    from serving.gallery.records import reply_of

    with _open(arguments) as gallery:
        reply = reply_of(gallery.status())
    if arguments.json:
        return _print_json(reply)
    lines = [f"{key}: {value}" for key, value in reply.items() if key != "calibration"]
    lines += [f"calibration {key}: {value}" for key, value in reply["calibration"].items()]
    return _show(arguments, reply, "\n".join(lines))


def _rebuild(arguments: argparse.Namespace) -> int:
    with (
        _open_beside_console(arguments) as (gallery, console),
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
    return _show(arguments, rebuilt, text)


def _calibrate(arguments: argparse.Namespace) -> int:
    from serving.gallery.records import calibration_of

    cohort = None if arguments.images is None else _cohort(arguments.images)
    with _open(arguments) as gallery:
        status = gallery.calibrate(cohort)
    calibration = calibration_of(status)
    bound = status.threshold.logit
    text = f"the threshold is {bound:.2f} now, by {_BASES[status.threshold.basis]}"
    if calibration["people"]:
        text += f" ({calibration['pairs']} pairs, {calibration['people']} people)"
    _advise(status.threshold.advice)
    return _show(arguments, {**calibration, "threshold": bound}, text)


_BASES: Final = {
    "model": "the people held out when the model was trained",
    "cohort": "the outsiders given with --images",
    "gallery": "those enrolled",
    "scores": "the model's scores alone",
}


def _advise(advice: str | None) -> None:
    """What is to be known of the threshold; apart from the answer, which scripts read."""
    if advice is not None:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"note: {advice}")


def _erase(arguments: argparse.Namespace) -> int:
    with _open(arguments) as gallery:
        erased = gallery.erase()
    if not erased:
        raise RuntimeError("another process keeps the database busy: try again later")
    return _show(arguments, {"erased": True}, "nothing of what was removed is left in the files")


def _cohort(images: Path) -> "list[Any]":
    from data_ingest.sources.layout import ImageReader, list_images
    from serving.gallery import CohortImage

    cohort = []
    with ImageReader() as reader:
        for file in list_images(images):
            content, reason = reader.read_checked(file)
            if reason is None:
                cohort.append(CohortImage(f"{file.group}/{file.class_name}", content))
    if not cohort:
        raise InputError(f"--images {images}: none of the images can be read")
    return cohort


def _read(path: Path) -> bytes:
    try:
        with naming(path):
            return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: {error.strerror}; give the file of an image") from error


@contextmanager
def _open(arguments: argparse.Namespace) -> "Iterator[Gallery]":
    with _open_beside_console(arguments) as (gallery, _):
        yield gallery


@contextmanager
def _open_beside_console(arguments: argparse.Namespace) -> "Iterator[tuple[Gallery, TextIO]]":
    """The gallery, and stderr, which is closed to TensorFlow's C++ code meanwhile."""
    from serving.errors import Code, ServingError
    from serving.gallery import open_gallery
    from serving.gallery.gallery import FALSE_ACCEPT_RATE

    rate = arguments.false_accept_rate
    if not arguments.verbose:
        # It says of each load that the loader of TF Serving is an old one.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with run_logging(Path(os.devnull), verbose=arguments.verbose) as console:
        try:
            with open_gallery(
                arguments.gallery,
                _embedder(arguments.model),
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
        from serving.client.rest import Client
        from serving.gallery.embedder import ServerEmbedder

        try:
            return ServerEmbedder(Client(model))
        except ValueError as error:
            raise InputError(f"--model {model}: {error}") from error
    from serving.gallery.embedder import FolderEmbedder

    return FolderEmbedder(Path(model))


def _show(arguments: argparse.Namespace, answer: Any, text: str) -> int:
    from serving.gallery.records import reply_of

    if arguments.json:
        return _print_json(reply_of(answer))
    Console(highlight=False, markup=False, soft_wrap=True).print(text)
    return EXIT_DONE


def _print_json(document: "dict[str, Any] | Sequence[Any]") -> int:
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
    return EXIT_DONE


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
