"""`oneshot drift`: is a span like those before it?"""

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

from components.versions import versions
from data_ingest.span_store import SpanStore
from pipeline.config import load_config
from pipeline.logs import run_logging
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.drift import DriftReport, Measurement

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
        from pipeline.drift import check_drift

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
