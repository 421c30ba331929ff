"""`oneshot promote`, `rollback` and `gc`: which version clients get, and what is kept."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table

from data_ingest.errors import InputError
from pipeline.cli.shared import CONFIGURED, OUTPUT, Context, add_command, table
from pipeline.runs.workspace import new_run_id
from serving.deploy.models_config import LABELS, STABLE

if TYPE_CHECKING:
    from pipeline.releases.changes import Change
    from pipeline.releases.promotion import Promotions, Standing


def add_parsers(commands: Any) -> None:
    """Adds the group to the commands of `oneshot`."""
    promote = add_command(
        commands,
        "promote",
        _promote,
        OUTPUT,
        CONFIGURED,
        text="label a version stable or canary, or list versions and labels",
    )
    promote.add_argument(
        "version", nargs="?", type=int, metavar="VERSION", help="what to label (default: list them)"
    )
    promote.add_argument("--label", choices=LABELS, help="the label")
    promote.add_argument("--why", default="", help="why, for the history")

    rollback = add_command(
        commands,
        "rollback",
        _rollback,
        OUTPUT,
        CONFIGURED,
        text="go back to the stable version before this one",
    )
    rollback.add_argument(
        "--label",
        choices=LABELS,
        default=STABLE,
        help="label of the version that is bad (default: %(default)s)",
    )
    rollback.add_argument("--why", default="", help="why, for the history")

    gc = add_command(
        commands,
        "gc",
        _gc,
        OUTPUT,
        CONFIGURED,
        text="remove old versions, artifacts, reports, logs and checkpoints",
    )
    gc.add_argument(
        "--keep-versions",
        type=int,
        default=5,
        metavar="N",
        help="how many of the newest versions stay (default: %(default)s)",
    )
    gc.add_argument(
        "--keep-days",
        type=float,
        default=30.0,
        metavar="DAYS",
        help="what is younger stays (default: %(default)g)",
    )
    gc.add_argument(
        "--dry-run", action="store_true", help="tell what would be removed, and remove nothing"
    )


def _promote(context: Context) -> None:
    """Gives a version the label stable or canary, in <output>/serving_model/models.config, which TF
    Serving and `oneshot serve --model_config_file` follow.

    Without VERSION lists versions, labels and their history.
    """
    version, label = context.options.version, context.options.label
    if (version is None) != (label is None):
        raise InputError("promote: VERSION and --label belong together")
    with context.quiet_libraries():
        promotions = _labelled(context)
        change = None
        if version is not None:
            change = promotions.promote(version, label, why=context.options.why)
        standing = promotions.standing()
    document = {"change": change and asdict(change), "labels": dict(standing.labels)}
    if version is None:
        _list(context, standing)
    elif change is None:
        context.show(document, f"Version {version} is {label} already.")
    else:
        before = "" if change.previous is None else f" (before: {change.previous})"
        context.show(document, f"Version {change.version} is {label} now{before}.")


def _list(context: Context, standing: "Standing") -> None:
    versions = []
    for version in sorted([*standing.versions, *standing.rolled_back], reverse=True):
        notes = [label for label in LABELS if standing.labels.get(label) == version]
        notes += ["newest"] if standing.versions[-1:] == [version] else []
        notes += ["rolled back"] if version in standing.rolled_back else []
        versions.append((str(version), ", ".join(notes)))
    history = ("", _history(standing.history)) if standing.history else ()
    context.show(asdict(standing), table(("version", ""), versions), *history)


def _history(changes: "Sequence[Change]") -> Table:
    rows = []
    for change in reversed(changes):
        left = change.withdrawn if change.withdrawn is not None else change.previous
        rows.append(
            (
                datetime.fromtimestamp(change.when).strftime("%Y-%m-%d %H:%M:%S"),
                change.action,
                ", ".join(change.labels),
                str(left or ""),
                str(change.serves or ""),
                change.who,
                change.why,
            )
        )
    return table(
        ("when", "what", "label", "from", "to", "who", "why"),
        rows,
        folded=("what", "label", "who", "why"),
    )


def _rollback(context: Context) -> None:
    """Takes a bad version out of service for good: its labels go to the version that was stable
    before, servers no longer see it, and no later model is compared with it or starts from it."""
    with context.quiet_libraries():
        promotions = _labelled(context)
        change = promotions.rollback(context.options.label, why=context.options.why)
        standing = promotions.standing()
    document = {"change": asdict(change), "labels": dict(standing.labels)}
    context.show(document, *_told(change, standing))


def _told(change: "Change", standing: "Standing") -> Iterator[str]:
    labels = " and ".join(change.labels) or "the newest"
    yield f"Version {change.version} is out of service; {labels} is {change.previous} again."
    newest = standing.versions[-1]
    if change.labels and newest != change.previous:
        yield f"Servers that follow the newest version and not the labels get {newest}."


def _labelled(context: Context) -> "Promotions":
    base = context.workspace.serving_model
    if not base.is_dir():
        raise InputError(
            f"{base}: no versions yet; `oneshot run` pushes one, --output names another folder"
        )
    return _promotions(context)


def _promotions(context: Context) -> "Promotions":
    from ml_metadata import MetadataStore

    from pipeline.releases.promotion import Promotions

    store = MetadataStore(context.metadata.connection())
    return Promotions(context.workspace, store, settings=context.config.push)


def _gc(context: Context) -> None:
    """Removes what is older than --keep-days, except for the newest --keep-versions versions,
    whatever is labelled, served or needed for a rollback, the model that the next one is compared
    with, and the newest run, which is still served from the cache.

    Spans and other data stay.
    """
    options = context.options
    with context.quiet_libraries():
        from pipeline.releases.cleanup import collect_garbage

        history = context.history()
        with context.lease().held(run_id=new_run_id(), command="gc"):
            report = collect_garbage(
                _promotions(context),
                history.runs(),
                keep_versions=options.keep_versions,
                keep_days=options.keep_days,
                now=time.time(),
                dry_run=options.dry_run,
            )
    document = {
        "dry_run": options.dry_run,
        "bytes": report.total_bytes,
        "removed": [{**asdict(gone), "path": str(gone.path)} for gone in report.removed],
        "kept_versions": report.kept_versions,
    }
    counts = Counter(gone.kind for gone in report.removed)
    what = ", ".join(f"{count} {kind}s" for kind, count in sorted(counts.items())) or "nothing"
    context.show(
        document,
        table(
            ("version", "stays because"),
            ((str(version), reason) for version, reason in report.kept_versions.items()),
            folded=("stays because",),
        ),
        f"{'Would remove' if options.dry_run else 'Removed'} {what}: "
        f"{report.total_bytes / 1e6:.1f} MB.",
    )
