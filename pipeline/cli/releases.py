"""`oneshot promote` and `oneshot rollback`: which version clients get."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from ml_metadata import MetadataStore
from rich import box
from rich.console import Console
from rich.table import Table

from data_ingest.errors import InputError
from pipeline.config import load_config
from pipeline.releases.history import Change
from pipeline.releases.promotion import LABELS, Promotions, Standing
from pipeline.runs.logs import run_logging
from pipeline.runs.metadata_store import locate
from pipeline.runs.workspace import Workspace, new_run_id
from serving.deploy.models_config import STABLE


def add_parsers(
    commands: Any, parents: Sequence[argparse.ArgumentParser], configured: argparse.ArgumentParser
) -> None:
    """Adds `promote` and `rollback` to the subcommands of `oneshot`.

    Args:
      commands: what `add_subparsers` returned.
      parents: parsers of `--json`, `--verbose` and `--output`.
      configured: parser of `--config` and `--set`.
    """
    promote = commands.add_parser(
        "promote",
        parents=[*parents, configured],
        help="give a version a label; without VERSION: versions, labels and their history",
        description="Gives a version the label stable or canary, in "
        "<output>/serving_model/models.config, which TF Serving and `oneshot serve "
        "--model_config_file` follow. Without VERSION lists versions, labels and their history.",
    )
    promote.add_argument("version", nargs="?", type=int, metavar="VERSION")
    promote.add_argument("--label", choices=LABELS, help="what the version becomes")
    promote.add_argument("--why", default="", help="for the history")
    promote.set_defaults(command=_promote)

    rollback = commands.add_parser(
        "rollback",
        parents=[*parents, configured],
        help="take the stable version out of service and return to the one before it",
        description="Takes a bad version out of service for good: its labels go to the version "
        "that was stable before, servers no longer see it, and no later model is compared with it "
        "or starts from it.",
    )
    rollback.add_argument(
        "--label", choices=LABELS, default=STABLE, help="whose version is bad (%(default)s)"
    )
    rollback.add_argument("--why", default="", help="for the history")
    rollback.set_defaults(command=_rollback)


def _promote(arguments: argparse.Namespace) -> int:
    if (arguments.version is None) != (arguments.label is None):
        raise InputError("promote: VERSION and --label belong together")
    with run_logging(Path(os.devnull), verbose=arguments.verbose):
        promotions = _promotions(arguments)
        change = None
        if arguments.version is not None:
            change = promotions.promote(arguments.version, arguments.label, why=arguments.why)
        standing = promotions.standing()
    labels = dict(standing.labels)
    if arguments.version is None:
        _list(arguments, standing)
    elif arguments.json:
        _say(json.dumps({"change": change and asdict(change), "labels": labels}, indent=2))
    elif change is None:
        _say(f"Version {arguments.version} is {arguments.label} already.")
    else:
        before = "" if change.previous is None else f" (before: {change.previous})"
        _say(f"Version {change.version} is {arguments.label} now{before}.")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    with run_logging(Path(os.devnull), verbose=arguments.verbose):
        promotions = _promotions(arguments)
        change = promotions.rollback(arguments.label, why=arguments.why)
        standing = promotions.standing()
    if arguments.json:
        labels = dict(standing.labels)
        _say(json.dumps({"change": asdict(change), "labels": labels}, indent=2))
        return 0
    for line in _told(change, standing):
        _say(line)
    return 0


def _told(change: Change, standing: Standing) -> Iterator[str]:
    labels = " and ".join(change.labels) or "the newest"
    yield f"Version {change.version} is out of service; {labels} is {change.previous} again."
    newest = standing.versions[-1]
    if change.labels and newest != change.previous:
        yield f"Servers that follow the newest version and not the labels get {newest}."


def _list(arguments: argparse.Namespace, standing: Standing) -> None:
    if arguments.json:
        _say(json.dumps(asdict(standing), indent=2))
        return
    console = Console(highlight=False)
    console.print(_versions_table(standing))
    if standing.history:
        console.print()
        console.print(_history_table(standing.history))


def _versions_table(standing: Standing) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("version", no_wrap=True)
    table.add_column("")
    for version in sorted([*standing.versions, *standing.rolled_back], reverse=True):
        notes = [label for label in LABELS if standing.labels.get(label) == version]
        notes += ["newest"] if standing.versions[-1:] == [version] else []
        notes += ["rolled back"] if version in standing.rolled_back else []
        table.add_row(str(version), ", ".join(notes))
    return table


def _history_table(history: Sequence[Change]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("when", "what", "label", "from", "to", "who", "why"):
        table.add_column(heading, no_wrap=heading in ("when", "from", "to"), overflow="fold")
    for change in reversed(history):
        left = change.withdrawn if change.withdrawn is not None else change.previous
        table.add_row(
            datetime.fromtimestamp(change.when).strftime("%Y-%m-%d %H:%M:%S"),
            change.action,
            ", ".join(change.labels),
            str(left or ""),
            str(change.serves or ""),
            change.who,
            change.why,
        )
    return table


def _promotions(arguments: argparse.Namespace) -> Promotions:
    config = load_config(arguments.config, arguments.overrides)
    workspace = Workspace(arguments.output.absolute(), config.push.model_name)
    metadata = locate(config.metadata, workspace)
    if not workspace.serving_model.is_dir():
        raise InputError(
            f"{workspace.serving_model}: no versions yet; `oneshot run` pushes one, --output names "
            "another folder"
        )
    return Promotions(workspace, MetadataStore(metadata.connection()), settings=config.push)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def add_parser(
    commands: Any, parents: Sequence[argparse.ArgumentParser], configured: argparse.ArgumentParser
) -> None:
    """Adds `gc` to the subcommands of `oneshot`.

    Args:
      commands: what `add_subparsers` returned.
      parents: parsers of `--json`, `--verbose` and `--output`.
      configured: parser of `--config` and `--set`.
    """
    parser = commands.add_parser(
        "gc",
        parents=[*parents, configured],
        help="remove old versions, artifacts, reports, logs and checkpoints",
        description="Removes what is older than --keep-days, except for the newest "
        "--keep-versions versions, whatever is labelled, served or needed for a rollback, the "
        "model that the next one is compared with, and the newest run, which is still served from "
        "the cache. Spans and other data stay.",
    )
    parser.add_argument("--keep-versions", type=int, default=5, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--keep-days", type=float, default=30.0, metavar="DAYS", help="(%(default)g)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    parser.set_defaults(command=_gc)


def _gc(arguments: argparse.Namespace) -> int:
    from ml_metadata import MetadataStore

    from pipeline.releases.cleanup import Retention, collect_garbage
    from pipeline.releases.promotion import Promotions
    from pipeline.runs.history import RunHistory

    keep = Retention(arguments.keep_versions, arguments.keep_days)
    config = load_config(arguments.config, arguments.overrides)
    workspace = Workspace(arguments.output.absolute(), config.push.model_name)
    metadata = locate(config.metadata, workspace)
    if metadata.sqlite_file is not None and not metadata.sqlite_file.is_file():
        raise InputError(
            f"{arguments.output}: no runs here yet (no {metadata.sqlite_file.name}); see --output"
        )
    lease = metadata.lease(ttl=config.retrain.lease_seconds)
    with (
        run_logging(Path(os.devnull), verbose=arguments.verbose),
        lease.held(run_id=new_run_id(), command="gc"),
    ):
        store = MetadataStore(metadata.connection())
        report = collect_garbage(
            workspace=workspace,
            store=store,
            runs=RunHistory(metadata.connection()).runs(),
            promotions=Promotions(workspace, store, settings=config.push),
            keep=keep,
            now=time.time(),
            dry_run=arguments.dry_run,
        )
    if arguments.json:
        removed = [
            {"kind": gone.kind, "path": str(gone.path), "bytes": gone.bytes}
            for gone in report.removed
        ]
        content = {
            "dry_run": report.dry_run,
            "bytes": report.total_bytes,
            "removed": removed,
            "kept_versions": report.kept_versions,
        }
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
        return 0
    console = Console(highlight=False)
    kept = Table("version", "stays because", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for version, reason in report.kept_versions.items():
        kept.add_row(str(version), reason)
    console.print(kept)
    counts = Counter(gone.kind for gone in report.removed)
    what = ", ".join(f"{count} {kind}s" for kind, count in sorted(counts.items())) or "nothing"
    verb = "Would remove" if report.dry_run else "Removed"
    console.print(f"{verb} {what}: {report.total_bytes / 1e6:.1f} MB.")
    return 0
