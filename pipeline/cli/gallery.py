"""`oneshot gallery`: identities are enrolled by name, recognised and forgotten.

`verify` exits with `ExitCode.DIFFERENT` for "not the same": a script that opens a door on success
opens it for nobody else, whatever went wrong. `identify` exits with 0 for someone unknown too: the
question was answered.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from rich.console import RenderableType

from data_ingest.errors import InputError
from data_ingest.progress import step
from data_ingest.sources.kinds import Crop
from pipeline.cli.gallery_images import Rejected, cohort, is_container, read_image, told
from pipeline.cli.gallery_many import enroll_folder, identify_many
from pipeline.cli.gallery_outlook import outlook_document, outlook_told, seen_in_training
from pipeline.cli.gallery_session import advise, images_told, open_session
from pipeline.cli.shared import Context, Handler, add_command, count, table, typed_path
from pipeline.runs.status import ExitCode

if TYPE_CHECKING:
    from serving.gallery import Gallery, Identity

_PAGE: Final = 1000
_MOST_CANDIDATES: Final = 100
_BASES: Final = {
    "model": "the identities held out when the model was trained",
    "cohort": "the outsiders given with --images",
    "gallery": "those enrolled",
    "scores": "the model's scores alone",
}


def add_parsers(commands: Any) -> None:
    """Adds the group to the commands of `oneshot`."""
    gallery = commands.add_parser("gallery", help="recognise people or things by one image of each")
    actions = gallery.add_subparsers(required=True, metavar="ACTION")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--gallery",
        default="output/gallery.db",
        metavar="FILE_OR_URL",
        help="SQLite file, or postgresql://user@host/database with the password in PGPASSWORD or "
        "~/.pgpass (default: %(default)s)",
    )
    where.add_argument(
        "--model",
        default="output/serving_model/siamese",
        metavar="DIR_OR_URL",
        help="folder of pushed versions or of one version, or http://host:port of a server "
        "(default: %(default)s)",
    )
    where.add_argument(
        "--false-accept-rate",
        type=float,
        metavar="F",
        help="chance that an outsider is taken for someone (default: 0.01)",
    )

    where.add_argument(
        "--crop",
        choices=get_args(Crop),
        help="cut the one face out of each photo (default: as the gallery began; a new one as its "
        "model was trained)",
    )

    def add(name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
        return add_command(actions, name, handler, where, text=text)

    enroll = add("enroll", _enroll, "enrol images under a name, one or more, or a folder of names")
    enroll.usage = "%(prog)s [options] (NAME IMAGE [IMAGE ...] | --images DIR_OR_ZIP)"
    named = [
        enroll.add_argument("name", metavar="NAME", help="who is in the images"),
        enroll.add_argument(
            "files", metavar="IMAGE", type=typed_path, nargs="+", help="images; one is enough"
        ),
    ]
    enroll.add_argument(
        "--images",
        type=typed_path,
        metavar="DIR_OR_ZIP",
        action=_instead_of(named),
        help="in place of NAME and IMAGE: many names, <name>/<image>; doing it again adds what is "
        "new",
    )
    identify = add("identify", _identify, "say who is in an image, or in each image of a folder")
    identify.add_argument(
        "images",
        metavar="IMAGE_OR_DIR",
        type=typed_path,
        nargs="+",
        help="images, folders and zips",
    )
    identify.add_argument(
        "--limit",
        type=_limit,
        default=5,
        help="how many candidates to show, at most 100 (default: %(default)s)",
    )
    verify = add("verify", _verify, "say whether an image is of that name; exit code 0 yes, 4 no")
    verify.add_argument("name", metavar="NAME", help="who it is said to be")
    verify.add_argument("image", metavar="IMAGE", type=typed_path, help="the image")
    remove = add("remove", _remove, "forget a name, its images and its vectors")
    remove.add_argument("name", metavar="NAME", help="who is to be forgotten")
    add("list", _list, "list who is enrolled")
    add(
        "status",
        _status,
        "tell what it holds and is calibrated on, and how many it would recognise",
    )
    add("rebuild", _rebuild, "move to the newest model; interrupted, it continues")
    calibrate = add("calibrate", _calibrate, "learn how alike different identities look")
    calibrate.add_argument(
        "--images",
        type=typed_path,
        metavar="DIR_OR_ZIP",
        help="images of outsiders, who are not enrolled, <outsider>/<image> (default: use those "
        "enrolled)",
    )
    add("erase", _erase, "clear the database's files of what was removed (PostgreSQL: slow)")


def _limit(text: str) -> int:
    number = count(text)
    if number > _MOST_CANDIDATES:
        raise argparse.ArgumentTypeError(f"at most {_MOST_CANDIDATES}, not {number}")
    return number


def _instead_of(others: Sequence[argparse.Action]) -> type[argparse.Action]:
    """An option that takes the place of arguments, which are not required with it."""

    class InsteadOf(argparse.Action):
        def __call__(self, _parser: Any, options: Any, values: Any, _name: Any = None) -> None:
            setattr(options, self.dest, values)
            for other in others:
                other.required = False

    return InsteadOf


def _enroll(context: Context) -> None:
    if context.options.images is None:
        _enroll_one(context)
    elif context.options.name or context.options.files:
        raise InputError("give NAME and IMAGE, or --images, not both")
    else:
        enroll_folder(context)


def _enroll_one(context: Context) -> None:
    from serving.gallery import AlreadyEnrolled

    paths = context.options.files
    images = [read_image(path) for path in paths]
    with open_session(context) as gallery:
        images = [_as_kept(image, path, gallery) for image, path in zip(images, paths, strict=True)]
        try:
            enrolment = gallery.enroll(context.options.name, images)
        except AlreadyEnrolled as error:
            raise InputError(f"{paths[error.place]}: {error.message}") from error
        namesakes = gallery.namesakes(enrolment.name)
        advice = gallery.status().threshold.advice
    text = f"{enrolment.name}: {images_told(enrolment.added)} enrolled"
    if enrolment.known:
        text += f", {enrolment.known} there already"
    if namesakes:
        others = ", ".join(map(repr, namesakes))
        advise(f"names that differ in upper case are two identities; enrolled too: {others}")
    advise(advice)
    _show(context, enrolment, text)


def _as_kept(image: bytes, path: Path, gallery: "Gallery") -> bytes:
    """The image, or what the gallery is to cut out of it; an error names the path."""
    return image if gallery.crop is None else read_image(path, gallery.crop)


def _identify(context: Context) -> None:
    paths = context.options.images
    if len(paths) > 1 or is_container(paths[0]):
        identify_many(context)
        return
    image = read_image(paths[0])
    with open_session(context) as gallery:
        image = _as_kept(image, paths[0], gallery)
        found = gallery.identify(image, limit=context.options.limit)
        advice = gallery.status().threshold.advice
    advise(advice)
    candidates = (
        f"  {one.name}: logit {one.logit:.2f}, {_side(one.logit, found.threshold)} the threshold "
        f"{found.threshold:.2f}"
        for one in found.candidates
    )
    _show(context, found, found.name if found.name is not None else "unknown", *candidates)


def _verify(context: Context) -> ExitCode:
    image = read_image(context.options.image)
    with open_session(context) as gallery:
        image = _as_kept(image, context.options.image, gallery)
        found = gallery.verify(context.options.name, image)
    if found.same:
        text = f"accepted as {found.name} at"
        border = f"down to {_percent(found.least_rate)}"
    elif found.least_rate is None:
        text, border = f"refused as {found.name} at", "and at any other"
    else:
        text, border = f"refused as {found.name} at", f"accepted from {_percent(found.least_rate)}"
    _show(
        context,
        found,
        f"{text} a false-accept rate of {_percent(found.false_accept_rate)} ({border}): logit "
        f"{found.logit:.2f}, {_side(found.logit, found.threshold)} the threshold "
        f"{found.threshold:.2f}",
    )
    return ExitCode.DONE if found.same else ExitCode.DIFFERENT


def _remove(context: Context) -> None:
    with open_session(context) as gallery:
        removal = gallery.remove(context.options.name)
    if not removal.images:
        raise InputError(f"nobody is enrolled as {removal.name!r}; see `oneshot gallery list`")
    text = f"{removal.name}: {images_told(removal.images)} removed"
    if not removal.erased:
        text += "; the database's files may hold them until `oneshot gallery erase`"
    _show(context, removal, text)


def _list(context: Context) -> None:
    from serving.gallery.records import reply_of

    with open_session(context) as gallery:
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
    """What it holds, by what it judges, and how those enrolled would fare with other images."""
    from serving.errors import ServingError
    from serving.gallery.outlook import Outlook
    from serving.gallery.records import reply_of

    with open_session(context) as gallery, step("Asking about those enrolled") as asking:
        status = gallery.status()
        try:
            outlook: Outlook | str = gallery.outlook(asking.at)
        except ServingError as error:
            outlook = error.message
    reply = reply_of(status)
    calibration = {f"calibration {key}": value for key, value in reply["calibration"].items()}
    lines = {key: value for key, value in reply.items() if key != "calibration"} | calibration
    advise(seen_in_training(status))
    context.show(
        {**reply, "outlook": outlook_document(outlook)},
        *(f"{key}: {value}" for key, value in lines.items()),
        *outlook_told(outlook),
    )


def _rebuild(context: Context) -> None:
    with open_session(context) as gallery, step("Embedding images") as embedding:
        rebuilt = gallery.rebuild(embedding.at)
    text = (
        f"the gallery is of version {rebuilt.version} already"
        if rebuilt.before == rebuilt.version
        else f"the gallery answers with version {rebuilt.version} "
        f"({images_told(rebuilt.images)} embedded; before: {rebuilt.before or 'none'})"
    )
    _show(context, rebuilt, text)


def _calibrate(context: Context) -> None:
    from serving.gallery.records import calibration_of

    images = context.options.images
    outsiders = None
    rejected: Rejected = []
    with open_session(context) as gallery:
        if images is not None:
            outsiders = cohort(images, rejected, gallery.crop)
            if not outsiders:
                raise InputError(
                    f"--images {images}: none of the images can be used: {told(rejected)}"
                )
        with step("Calibrating"):
            status = gallery.calibrate(outsiders)
    advise(f"images left out: {told(rejected)}" if rejected else None)
    calibration = calibration_of(status)
    bound = status.threshold.logit
    text = f"the threshold is {bound:.2f} now, by {_BASES[status.threshold.basis]}"
    if calibration["people"]:
        text += f" ({calibration['pairs']} pairs, {calibration['people']} identities)"
    advise(seen_in_training(status))
    advise(status.threshold.advice)
    context.show({**calibration, "threshold": bound}, text)


def _erase(context: Context) -> None:
    with open_session(context) as gallery:
        erased = gallery.erase()
    if not erased:
        raise RuntimeError("another process keeps the database busy: try again later")
    context.show({"erased": True}, "nothing of what was removed is left in the files")


def _side(logit: float, threshold: float) -> str:
    return "above" if logit > threshold else "below"


def _percent(rate: float | None) -> str:
    """A rate in percent, to two digits."""
    percent = 100 * (rate or 0.0)
    return "less than 0.001 %" if percent < 0.001 else f"{percent:.2g} %"


def _show(context: Context, answer: Any, *told: RenderableType) -> None:
    from serving.gallery.records import reply_of

    context.show(reply_of(answer), *told)
