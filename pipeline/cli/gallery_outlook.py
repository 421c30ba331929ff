"""Tells how those enrolled in a gallery would fare, and whom of them the model was trained on."""

from typing import TYPE_CHECKING, Any, Final

from rich.console import RenderableType

from pipeline.cli.shared import table

if TYPE_CHECKING:
    from serving.gallery import Status
    from serving.gallery.outlook import Outlook, Share

_HEADINGS: Final = (
    *("references", "rate", "unknown", "right name", "wrong name", "names", "images"),
)
_TITLE: Final = (
    "Other images of those enrolled, by how many references each has and the false-accept rate\n"
    "(leave-one-out; percent, with 95 % intervals)"
)
_LEFT_OUT: Final = "left_out_as_trained_on"
_UNSAID: Final = "how many of those enrolled would be unknown cannot be said"


def outlook_document(outlook: "Outlook | str") -> dict[str, Any]:
    """The outlook, or why there is none, ready for `json.dumps`."""
    if isinstance(outlook, str):
        return {"fared": [], "identities": None, _LEFT_OUT: None, "note": f"{_UNSAID}: {outlook}"}
    shares = ("right", "unknown", "wrong")
    fared = [
        {**one._asdict(), **{name: getattr(one, name)._asdict() for name in shares}}
        for one in outlook.fared
    ]
    facts = {"identities": outlook.identities, _LEFT_OUT: outlook.seen, "note": _note(outlook)}
    return {"fared": fared, **facts}


def outlook_told(outlook: "Outlook | str") -> list[RenderableType]:
    """The outlook, or why there is none, for people."""
    if isinstance(outlook, str):
        return [f"{_UNSAID}: {outlook}"]
    told: list[RenderableType] = []
    if outlook.fared:
        rows = [
            (
                str(one.references),
                f"{100 * one.false_accept_rate:g} %",
                *map(_share, (one.unknown, one.right, one.wrong)),
                str(one.identities),
                str(one.images),
            )
            for one in outlook.fared
        ]
        told.append(table(_HEADINGS, rows, title=_TITLE, right=_HEADINGS))
    note = _note(outlook)
    return told if note is None else [*told, note]


def seen_in_training(status: "Status") -> str | None:
    """What is to be known of calibration images that the model was trained on; None: nothing."""
    known = status.impostors
    if known is None:
        return None
    if known.seen:
        return (
            f"{known.seen} identities are left out of the calibration: the model was trained on "
            "images of them, and tells them apart better than it does strangers"
        )
    if known.seen is None and status.threshold.basis in ("cohort", "gallery"):
        return (
            "whether the model was trained on the images that thresholds rest on is not known (an "
            "earlier release exported it, or it is on a server): if it was, more strangers are "
            "given a name than asked for"
        )
    return None


def _note(outlook: "Outlook") -> str | None:
    from serving.gallery.outlook import ENOUGH

    said = []
    if not outlook.fared:
        said.append(
            f"{_UNSAID}: {outlook.identities} of them have two images or more"
            + (" that the model was not trained on" if outlook.seen else "")
            + f", and {ENOUGH} are needed"
        )
    elif outlook.seen is None:
        said.append(
            "whether the model was trained on these images is not known; if it was, others are "
            "recognised less often"
        )
    if outlook.seen:
        said.append(f"{outlook.seen} more are not asked about, for the model was trained on them")
    return "; ".join(said) or None


def _share(share: "Share") -> str:
    value, low, high = (100 * part for part in share)
    return f"{value:.0f} ({low:.0f}-{high:.0f})"
