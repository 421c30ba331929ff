"""`oneshot ingest` and `oneshot spans`: images that arrive in portions, and what is there."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from data_ingest.records.catalog import BACKGROUND, EVALUATION
from data_ingest.spans.span import Span
from data_ingest.spans.store import SpanStore
from pipeline.config import load_config
from pipeline.runs.logs import console_logging, run_logging
from pipeline.runs.workspace import Workspace
from serving.saved_model.versions import versions

if TYPE_CHECKING:
    from pipeline.retraining.drift import DriftReport, Measurement

_NAMED = 5


def add_parsers(
    commands: Any, parents: Sequence[argparse.ArgumentParser], configured: argparse.ArgumentParser
) -> None:
    """Adds `ingest` and `spans` to the subcommands of `oneshot`.

    Args:
      commands: what `add_subparsers` returned.
      parents: parsers of `--json`, `--verbose` and `--output`.
      configured: parser of `--config` and `--set`.
    """
    ingest = commands.add_parser(
        "ingest",
        parents=[*parents, configured],
        help="land new images as a span, for good",
        description="Checks new images and lands them as a numbered span under <output>/spans: "
        "whole or not at all, and never changed again. The same span again changes nothing.",
    )
    which = ingest.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--span", type=int, metavar="N", help="number of the span, greater than those before"
    )
    which.add_argument(
        "--next",
        action="store_true",
        help="the next number; nothing where the newest span holds these images already",
    )
    ingest.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="DIR_OR_ZIP",
        help="images, <group>/<class>/<image> or <class>/<image>",
    )
    ingest.set_defaults(command=_ingest)

    spans = commands.add_parser("spans", help="list, exclude and readmit spans")
    actions = spans.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", parents=list(parents), help="which spans have landed")
    listing.set_defaults(command=_list)
    exclude = actions.add_parser(
        "exclude", parents=list(parents), help="keep a span out of all later trainings"
    )
    exclude.add_argument("number", type=int, metavar="N")
    exclude.add_argument("--reason", required=True, help="for whoever lists the spans")
    exclude.set_defaults(command=_exclude)
    readmit = actions.add_parser("readmit", parents=list(parents), help="take `exclude` back")
    readmit.add_argument("number", type=int, metavar="N")
    readmit.set_defaults(command=_readmit)


def _store(arguments: argparse.Namespace) -> SpanStore:
    return SpanStore(Workspace(arguments.output.absolute()).spans)


def _ingest(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    store = _store(arguments)
    before = {span.number for span in store.spans()}
    with console_logging(sys.stderr, verbose=arguments.verbose):
        span = store.land(
            None if arguments.next else arguments.span,
            arguments.sources,
            pairs=config.pairs,
            max_rejected_share=config.dataset.max_rejected_share,
        )
    landed = span.number not in before
    return _show(arguments, {"changed": landed, **_document(span)}, _told(span, landed=landed))


def _list(arguments: argparse.Namespace) -> int:
    spans = _store(arguments).spans()
    if arguments.json:
        return _show(arguments, [_document(span) for span in spans], "")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in (
        "span",
        "landed (UTC)",
        "to train on",
        "to evaluate",
        "groups",
        "new",
        "excluded",
    ):
        right = heading not in ("landed (UTC)", "excluded")
        table.add_column(
            heading, justify="right" if right else "left", no_wrap=heading != "excluded"
        )
    for span in spans:
        table.add_row(
            str(span.number),
            span.landed[:16].replace("T", " "),
            f"{span.images[BACKGROUND]:,}",
            f"{span.images[EVALUATION]:,}",
            str(span.groups),
            str(len(span.new)),
            span.excluded or "",
        )
    Console(highlight=False, markup=False).print(table if spans else "no spans yet")
    return 0


def _exclude(arguments: argparse.Namespace) -> int:
    _store(arguments).exclude(arguments.number, arguments.reason)
    return _show_number(arguments, "is excluded from later trainings and evaluations")


def _readmit(arguments: argparse.Namespace) -> int:
    _store(arguments).readmit(arguments.number)
    return _show_number(arguments, "is used again")


def _show_number(arguments: argparse.Namespace, text: str) -> int:
    span = _store(arguments).span(arguments.number)
    return _show(arguments, _document(span), f"span {span.number} {text}")


def _document(span: Span) -> dict[str, Any]:
    return {
        "span": span.number,
        "path": str(span.path),
        "excluded": span.excluded,
        **span.model_dump(mode="json", exclude={"number"}),
    }


def _told(span: Span, *, landed: bool) -> str:
    if not landed:
        return f"span {span.number} is there already, with these images: nothing to do"
    lines = [
        f"span {span.number}: {sum(span.images.values()):,} images "
        f"({span.images[BACKGROUND]:,} to train on, {span.images[EVALUATION]:,} to evaluate) of "
        f"{sum(span.classes.values()):,} classes in {span.path}"
    ]
    if span.new:
        kept = sorted(name for name, side in span.new.items() if side == EVALUATION)
        named = ", ".join(kept[:_NAMED]) + (", ..." if len(kept) > _NAMED else "")
        what = {"group": "groups", "class": "classes"}[span.unit]
        lines.append(
            f"{len(span.new)} new {what}; never trained on, but evaluated with: {named or 'none'}"
        )
    if span.duplicates:
        lines.append(f"{span.duplicates:,} copies left out")
    if span.refused:
        reasons = sorted({bad.reason for bad in span.refused})
        lines.append(
            f"{len(span.refused):,} unusable images left out ({', '.join(reasons)}), listed in "
            f"{span.path / 'span.json'}"
        )
    return "\n".join(lines)


def _show(arguments: argparse.Namespace, document: Any, text: str) -> int:
    if arguments.json:
        json.dump(document, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        Console(highlight=False, markup=False, soft_wrap=True).print(text)
    return 0


_EXIT_DONE: Final = 0
_EXIT_BLOCKED: Final = 3


def add_parser(commands: Any, parents: Sequence[argparse.ArgumentParser]) -> None:
    """Adds `drift` to the subcommands of `oneshot`.

    Args:
      commands: what `add_subparsers` returned.
      parents: parsers of `--json`, `--verbose`, `--output`, `--config` and `--set`.
    """
    parser = commands.add_parser(
        "drift",
        parents=list(parents),
        help="compare a span with those before it",
        description="Compares the images of a span, and the accuracy of the served model on them, "
        "with earlier spans. Writes <output>/drift/span-<N>.json. Exit code 3: the span drifted "
        "and, by drift.action, no training will use it.",
    )
    parser.add_argument("--span", type=int, required=True, metavar="N")
    parser.add_argument(
        "--model", type=Path, help="folder of a SavedModel (the newest version that was pushed)"
    )
    parser.set_defaults(command=_drift)


def newest_model(workspace: Workspace) -> Path | None:
    """The newest pushed version; None where there is none."""
    found = versions(workspace.serving_model)
    return workspace.serving_model / str(max(found)) if found else None


def _drift(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    workspace = Workspace(arguments.output.absolute(), config.push.model_name)
    store = SpanStore(workspace.spans)
    # Told before TensorFlow loads.
    store.span(arguments.span)
    with run_logging(Path(os.devnull), verbose=arguments.verbose):
        from pipeline.retraining.drift import check_drift

        report = check_drift(
            store,
            arguments.span,
            model=arguments.model or newest_model(workspace),
            settings=config.drift,
            reports=workspace.drift_reports,
        )
    if arguments.json:
        json.dump(report.document(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print(report, Console(highlight=False, markup=False, soft_wrap=True))
    return _EXIT_BLOCKED if report.blocked else _EXIT_DONE


def _print(report: "DriftReport", console: Console) -> None:
    if report.reference:
        earlier = ", ".join(map(str, report.reference))
        console.print(
            f"span {report.span} ({report.images:,} images measured) against {earlier} "
            f"({report.reference_images:,})"
        )
    if report.measurements:
        console.print(_table(report.measurements))
    for measurement in report.findings:
        if measurement.message:
            console.print(f"{measurement.feature}: {measurement.message}")
    for note in report.notes:
        console.print(note)
    if not report.findings:
        console.print("no drift")
    elif report.blocked:
        console.print(
            f"DRIFT: span {report.span} is excluded from training; after a look at it, "
            f"`oneshot spans readmit {report.span}` takes that back"
        )
    else:
        console.print("DRIFT")


def _table(measurements: Sequence["Measurement"]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("figure", "measure", "value", "tolerated", ""):
        table.add_column(heading, justify="right" if heading in ("value", "tolerated") else "left")
    for one in sorted(measurements, key=lambda one: -one.value / one.threshold):
        table.add_row(
            one.feature,
            one.measure.replace("_", " "),
            f"{one.value:.3f}",
            f"{one.threshold:.3f}",
            "DRIFT" if one.exceeded else "",
        )
    return table
