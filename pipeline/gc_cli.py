"""`oneshot gc`: removes what is old and no longer needed."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from data_ingest.errors import InputError
from pipeline.config import load_config
from pipeline.logs import run_logging
from pipeline.metadata_store import locate
from pipeline.workspace import Workspace, new_run_id


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

    from pipeline.garbage import collect_garbage
    from pipeline.history import RunHistory
    from pipeline.promotion import Promotions
    from pipeline.retention import Retention

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
