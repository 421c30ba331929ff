"""`oneshot ingest`, `spans` and `drift`: images that arrive in portions, and how they differ."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from rich.console import RenderableType

from data_ingest.errors import InputError, shown
from data_ingest.progress import step
from data_ingest.records.catalog import (
    BACKGROUND,
    EVALUATION,
    count_reasons,
    in_two_classes,
    told_noise,
    told_reasons,
)
from pipeline.cli.shared import CONFIGURED, OUTPUT, Context, add_command, named_path, table
from pipeline.runs.status import ExitCode

if TYPE_CHECKING:
    from data_ingest.spans.span import Span
    from data_ingest.spans.store import SpanStore
    from pipeline.retraining.drift import DriftReport

_NAMED: Final = 5


def add_parsers(commands: Any) -> None:
    """Adds the group to the commands of `oneshot`."""
    ingest = add_command(
        commands,
        "ingest",
        _ingest,
        OUTPUT,
        CONFIGURED,
        text="check new images and keep them as a span, for retraining",
    )
    which = ingest.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--span", type=int, metavar="N", help="number of the span, greater than all before it"
    )
    which.add_argument(
        "--next",
        action="store_true",
        help="take the next number, unless the newest span holds these images already",
    )
    ingest.add_argument(
        "sources",
        type=named_path,
        nargs="+",
        metavar="DIR_OR_ZIP",
        help="folders or zips of images, <class>/<image> or <group>/<class>/<image>",
    )

    spans = commands.add_parser("spans", help="list and check spans, or leave one out")
    actions = spans.add_subparsers(required=True, metavar="ACTION")
    add_command(actions, "list", _list, OUTPUT, text="list the spans that have landed")
    check = add_command(
        actions,
        "check",
        _check,
        OUTPUT,
        text="read all images, and name those that can no longer be used",
    )
    check.add_argument(
        "number", type=int, nargs="?", metavar="N", help="number of a span (default: all of them)"
    )
    exclude = add_command(
        actions, "exclude", _exclude, OUTPUT, text="keep a span out of all later trainings"
    )
    exclude.add_argument("number", type=int, metavar="N", help="number of the span")
    exclude.add_argument("--reason", required=True, help="why, for whoever lists the spans")
    readmit = add_command(actions, "readmit", _readmit, OUTPUT, text="take `exclude` back")
    readmit.add_argument("number", type=int, metavar="N", help="number of the span")

    drift = add_command(
        commands,
        "drift",
        _drift,
        OUTPUT,
        CONFIGURED,
        text="tell how a span differs from those before it",
    )
    drift.add_argument("--span", type=int, required=True, metavar="N", help="number of the span")
    drift.add_argument(
        "--model",
        type=named_path,
        metavar="DIR",
        help="folder of the model (default: the stable version, else the newest)",
    )


def _ingest(context: Context) -> None:
    """Checks new images and lands them as a numbered span under <output>/spans: whole or not at
    all, and never changed again.

    The same span again changes nothing.
    """
    options, config, store = context.options, context.config, _store(context)
    before = {span.number for span in store.spans()}
    with context.progress():
        span = store.land(
            None if options.next else options.span,
            options.sources,
            pairs=config.pairs,
            max_rejected_share=config.dataset.max_rejected_share,
            kind=config.dataset.kind,
            max_side=config.dataset.max_side,
        )
    landed = span.number not in before
    context.show({"changed": landed, **_document(span)}, *_told(span, landed=landed))


def _list(context: Context) -> None:
    spans = _store(context).spans()
    numbers = ("span", "to train on", "to evaluate", "groups", "new")
    rows = (
        (
            str(span.number),
            span.landed[:16].replace("T", " "),
            f"{span.images[BACKGROUND]:,}",
            f"{span.images[EVALUATION]:,}",
            str(span.groups),
            str(len(span.new)),
            span.excluded or "",
        )
        for span in spans
    )
    listed = table(
        (numbers[0], "landed (UTC)", *numbers[1:], "excluded"),
        rows,
        right=numbers,
        folded=("excluded",),
    )
    context.show([_document(span) for span in spans], listed if spans else "no spans yet")


def _check(context: Context) -> ExitCode:
    """Reads all images of spans that landed. Exit code 2: files are not what landed.

    Trainings leave out images that cannot be used, and go on as long as dataset.max_rejected_share
    allows it; excluding a span leaves out all of its images.
    """
    store, number = _store(context), context.options.number
    documents, lines = [], []
    intact = True
    for span in store.spans() if number is None else [store.span(number)]:
        span.check()
        damaged = list(_damage(span))
        unusable = span.unusable()
        intact &= not damaged
        documents.append(
            {
                "span": span.number,
                "damaged": damaged,
                "unusable": [bad.model_dump() for bad in unusable],
            }
        )
        lines += damaged
        images = sum(span.images.values())
        lines.append(f"span {span.number}: {len(unusable):,} of {images:,} images cannot be used")
        lines += [f"  {shown(bad.file)}: {bad.reason}" for bad in unusable]
    context.show(documents, *(lines or ["no spans yet"]))
    return ExitCode.DONE if intact else ExitCode.USAGE


def _damage(span: "Span") -> Iterator[str]:
    """What is wrong with its files, and what to do."""
    for side in (BACKGROUND, EVALUATION):
        try:
            span.check_bytes(side)
        except InputError as error:
            yield str(error)


def _exclude(context: Context) -> None:
    _store(context).exclude(context.options.number, context.options.reason)
    _show_number(context, "is excluded from later trainings and evaluations")


def _readmit(context: Context) -> None:
    _store(context).readmit(context.options.number)
    _show_number(context, "is used again")


def _show_number(context: Context, text: str) -> None:
    span = _store(context).span(context.options.number)
    context.show(_document(span), f"span {span.number} {text}")


def _store(context: Context) -> "SpanStore":
    from data_ingest.spans.store import SpanStore

    return SpanStore(context.workspace.spans)


def _document(span: "Span") -> dict[str, Any]:
    return {
        "span": span.number,
        "path": str(span.path),
        "excluded": span.excluded,
        **span.model_dump(mode="json", exclude={"number"}, by_alias=True),
    }


def _told(span: "Span", *, landed: bool) -> Iterator[str]:
    if not landed:
        yield f"span {span.number} is there already, with these images: nothing to do"
        return
    yield (
        f"span {span.number}: {sum(span.images.values()):,} images "
        f"({span.images[BACKGROUND]:,} to train on, {span.images[EVALUATION]:,} to evaluate) of "
        f"{sum(span.classes.values()):,} classes in {span.path}"
    )
    if span.new:
        kept = sorted(name for name, side in span.new.items() if side == EVALUATION)
        named = ", ".join(map(shown, kept[:_NAMED])) + (", ..." if len(kept) > _NAMED else "")
        what = {"group": "groups", "class": "classes"}[span.unit]
        yield f"{len(span.new)} new {what}; never trained on, but evaluated with: {named or 'none'}"
    if span.duplicates:
        yield f"{span.duplicates:,} copies left out"
    if span.rejected:
        counts = count_reasons((bad.file, bad.reason) for bad in span.rejected)
        names = ", ".join(shown(bad.file) for bad in span.rejected[:_NAMED])
        yield (
            f"{len(span.rejected):,} unusable images left out ({told_reasons(counts)}), such as "
            f"{names}; listed in {span.path / 'span.json'}"
        )
        noise = in_two_classes((bad.file, bad.reason) for bad in span.rejected)
        yield from (told_noise(*files) for files in noise[:_NAMED])


def _drift(context: Context) -> ExitCode:
    """Compares the images of a span, and the accuracy of the served model on them, with earlier
    spans.

    Writes <output>/drift/span-<N>.json. Exit code 3: the span drifted and, by drift.action, no
    training will use it.
    """
    config, span = context.config, context.options.span
    # Told before TensorFlow loads.
    _store(context).span(span)
    with context.quiet_libraries():
        with step("Loading TensorFlow"):
            from pipeline.retraining.drift import check_drift

        report = check_drift(config, context.workspace, span, model=context.options.model)
    context.show(report.document(), *_findings(report))
    return ExitCode.NOT_BLESSED if report.blocked else ExitCode.DONE


def _findings(report: "DriftReport") -> Iterator[RenderableType]:
    if report.reference:
        earlier = ", ".join(map(str, report.reference))
        yield (
            f"span {report.span} ({report.images:,} images measured) against {earlier} "
            f"({report.reference_images:,})"
        )
    if report.measurements:
        yield table(
            ("figure", "measure", "value", "tolerated", ""),
            (
                (
                    one.feature,
                    one.measure.replace("_", " "),
                    f"{one.value:.3f}",
                    f"{one.threshold:.3f}",
                    "DRIFT" if one.exceeded else "",
                )
                for one in sorted(report.measurements, key=lambda one: -one.value / one.threshold)
            ),
            right=("value", "tolerated"),
            folded=("figure", "measure"),
        )
    yield from (f"{one.feature}: {one.message}" for one in report.findings if one.message)
    yield from report.notes
    if not report.findings:
        yield "no drift"
    elif report.blocked:
        yield (
            f"DRIFT: span {report.span} is excluded from training; after a look at it, "
            f"`oneshot spans readmit {report.span}` takes that back"
        )
    else:
        yield "DRIFT"
