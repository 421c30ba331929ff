"""Enrols whole folders, and asks about each image of them, with the model loaded once."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from data_ingest.errors import InputError
from data_ingest.progress import step
from pipeline.cli.gallery_images import (
    Picture,
    Question,
    Rejected,
    images_anywhere,
    images_of_names,
    pictures,
    questions,
    told,
)
from pipeline.cli.gallery_session import advise, images_told, open_session
from pipeline.cli.shared import Context, print_json, table

if TYPE_CHECKING:
    from serving.gallery import Gallery, Identification

_BATCH: Final = 64
"""Images embedded together."""


def enroll_folder(context: Context) -> None:
    """Batch by batch, each all or nothing: interrupted, the same command goes on."""
    container: Path = context.options.images
    rejected: Rejected = []
    files = images_of_names(container, rejected)
    names: set[str] = set()
    added = known = 0
    total = len(files) + len(rejected)
    with open_session(context) as gallery, step("Enrolling", total) as enrolling:
        found = pictures(files, rejected, gallery.crop)
        while batch := list(itertools.islice(found, _BATCH)):
            new = _enroll_batch(gallery, batch)
            names |= {one.name for one in batch}
            added, known = added + new, known + len(batch) - new
            enrolling.at(added + known + len(rejected))
        advice = gallery.status().threshold.advice
    if not names:
        raise InputError(f"--images {container}: none of the images can be used: {told(rejected)}")
    advise(f"images left out: {told(rejected)}" if rejected else None)
    advise(advice)
    text = f"{images_told(added)} of {len(names)} names enrolled"
    if known:
        text += f", {known} there already"
    left_out = [{"image": bad.path, "reason": reason} for bad, reason in rejected]
    document = {"names": len(names), "added": added, "known": known, "left_out": left_out}
    context.show(document, text)


def _enroll_batch(gallery: "Gallery", batch: Sequence[Picture]) -> int:
    from serving.gallery import AlreadyEnrolled

    groups = {
        name: list(group) for name, group in itertools.groupby(batch, key=lambda one: one.name)
    }
    try:
        return gallery.enroll_many(
            (name, [one.content for one in group]) for name, group in groups.items()
        )
    except AlreadyEnrolled as error:
        path = groups[error.name][error.place].path
        raise InputError(f"{path}: {error.message}") from error


def identify_many(context: Context) -> None:
    """One answer an image: JSON lines with --json, else a table."""
    from serving.gallery.records import reply_of

    files = images_anywhere(context.options.images)
    answers: list[tuple[Question, Identification | None]] = []
    with (
        open_session(context, in_memory=True) as gallery,
        step("Embedding images", len(files)) as embedding,
    ):
        asked = questions(files, gallery.crop)
        while batch := list(itertools.islice(asked, _BATCH)):
            answers += _identified(gallery, batch, limit=context.options.limit)
            embedding.at(len(answers))
        advice = gallery.status().threshold.advice
    advise(advice)
    if context.options.json:
        for one, found in answers:
            reply = {"error": one.problem} if found is None else reply_of(found)
            print_json({"image": one.path, **reply}, indent=None)
        return
    kinds: Counter[str] = Counter()
    rows = []
    for one, found in answers:
        if found is None:
            kinds["not usable"] += 1
            rows.append((one.path, f"not usable: {one.problem}", "", "", ""))
            continue
        kinds["unknown" if found.name is None else "given a name"] += 1
        logits = [(best.name, f"{best.logit:.2f}") for best in found.candidates[:1]] or [("", "")]
        rows.append((one.path, found.name or "unknown", *logits[0], f"{found.threshold:.2f}"))
    headings = ("image", "who", "likeliest", "logit", "threshold")
    context.show(
        None,
        table(headings, rows, right=("logit", "threshold"), folded=headings[:3]),
        f"{images_told(len(answers))}: "
        + ", ".join(f"{number} {kind}" for kind, number in kinds.most_common()),
    )


def _identified(
    gallery: "Gallery", batch: Sequence[Question], *, limit: int
) -> "list[tuple[Question, Identification | None]]":
    """Those that cannot be used have no answer but their problem."""
    from serving.errors import Code, ServingError

    usable = [one for one in batch if not one.problem]
    try:
        found = iter(gallery.identify_many([one.content for one in usable], limit=limit))
    except ServingError as error:
        if error.code is not Code.INVALID_ARGUMENT or not usable:
            raise
        if len(batch) == 1:
            return [(batch[0]._replace(problem=error.message), None)]
        # The model refuses one of them: which?
        return [answer for one in batch for answer in _identified(gallery, [one], limit=limit)]
    return [(one, None if one.problem else next(found)) for one in batch]
