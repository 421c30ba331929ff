"""Removes from an output folder what is no longer needed.

In ML Metadata an artifact is marked before its files are touched, so that neither the cache nor a
Resolver gives it out any more, and is DELETED once they are gone. Whatever is cut off in between
is completed by the next call.
"""

import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2

from components.versions import remove_stale, remove_version, rolled_back_versions, versions
from pipeline.history import RunRecord
from pipeline.promotion import Promotions
from pipeline.retention import Needed, Retention, artifacts_in, find_needed
from pipeline.workspace import Workspace

_Artifact = metadata_store_pb2.Artifact
Kind = Literal["version", "rolled-back version", "artifact", "run", "checkpoint", "leftover"]


@dataclass(frozen=True)
class Removal:
    """Something that goes, and the bytes of its files."""

    kind: Kind
    path: Path
    bytes: int


@dataclass(frozen=True)
class GcReport:
    """What was removed, or would be.

    Attributes:
      removed: in no particular order.
      kept_versions: versions that stay, and why.
      dry_run: whether nothing was touched.
    """

    dry_run: bool
    kept_versions: dict[int, str]
    removed: list[Removal]

    @property
    def total_bytes(self) -> int:
        """Of all files removed."""
        return sum(removal.bytes for removal in self.removed)


def collect_garbage(
    *,
    workspace: Workspace,
    store: MetadataStore,
    runs: Sequence[RunRecord],
    promotions: Promotions,
    keep: Retention,
    now: float,
    dry_run: bool = False,
) -> GcReport:
    """Removes what `find_needed` does not name.

    The caller holds the output folder's lease: nothing runs. Spans, generated data and whatever
    else the pipeline did not make of its own are not touched.

    Args:
      workspace: the output folder.
      store: its ML Metadata.
      runs: its history.
      promotions: its labels.
      keep: how much is kept.
      now: seconds since 1970.
      dry_run: only tell.

    Raises:
      InputError: `models.config` cannot be read, or the artifacts are in another folder.
      OSError: something cannot be removed; calling again continues.
    """
    with promotions.unchanged():
        if not dry_run:
            promotions.complete()
        artifacts = artifacts_in(workspace, store)
        needed = find_needed(
            workspace=workspace,
            store=store,
            runs=runs,
            artifacts=artifacts,
            promotions=promotions,
            keep=keep,
            now=now,
        )
        doomed = _doomed(artifacts, needed)
        removals = [
            Removal("artifact", Path(artifact.uri), _size(Path(artifact.uri)))
            for artifact in doomed
        ]
        recorded = {run.run_id for run in runs}
        for kind, path in _unneeded(workspace, needed, artifacts, recorded, keep.since(now)):
            removals.append(Removal(kind, path, _size(path)))
        report = GcReport(dry_run, needed.versions, removals)
        if dry_run:
            return report
        _set_state(store, doomed, _Artifact.MARKED_FOR_DELETION)
        for removal in removals:
            if removal.kind == "version":
                remove_version(workspace.serving_model, int(removal.path.name))
    if workspace.serving_model.is_dir():
        remove_stale(workspace.serving_model)
    for removal in removals:
        if removal.kind == "rolled-back version":
            # The empty folder stays: its number is not given to another model.
            for entry in removal.path.iterdir():
                _remove(entry)
        elif removal.kind != "version":
            _remove(removal.path)
    _set_state(store, doomed, _Artifact.DELETED)
    return report


def _doomed(
    artifacts: Sequence[metadata_store_pb2.Artifact], needed: Needed
) -> list[metadata_store_pb2.Artifact]:
    """Artifacts to delete: unneeded ones, and those that an earlier call did not finish with."""
    stays = {artifact.uri for artifact in artifacts if artifact.id in needed.artifacts}
    return [
        artifact
        for artifact in artifacts
        if artifact.state == _Artifact.MARKED_FOR_DELETION
        or (
            artifact.state == _Artifact.LIVE
            and artifact.id not in needed.artifacts
            and artifact.uri not in stays
        )
    ]


def _unneeded(
    workspace: Workspace,
    needed: Needed,
    artifacts: Sequence[metadata_store_pb2.Artifact],
    recorded: Collection[str],
    since: float,
) -> Iterator[tuple[Kind, Path]]:
    """What goes besides artifacts."""
    base = workspace.serving_model
    for version in versions(base):
        if version not in needed.versions:
            yield "version", base / str(version)
    for version, folder in rolled_back_versions(base).items():
        if version not in needed.rolled_back and any(folder.iterdir()):
            yield "rolled-back version", folder
    for folder in workspace.runs.glob("[!.]*"):
        # Of a run that never got as far as the history there is only the time.
        old = folder.name in recorded or _newest(folder) < since
        if folder.name not in needed.runs and old and not folder.is_symlink():
            yield "run", folder
    for folder in workspace.checkpoints.glob("*"):
        if _newest(folder) < since:
            yield "checkpoint", folder
    known = {Path(a.uri) for a in artifacts if a.state != _Artifact.DELETED}
    known |= {parent for uri in known for parent in uri.parents}
    for folder in workspace.artifacts.glob("[!.]*/[!.]*/*"):
        if folder not in known:
            yield "leftover", folder
    for folder in workspace.artifacts.glob("*/.system/*/*"):
        if not (folder.name.isdigit() and int(folder.name) in needed.executions):
            yield "leftover", folder
    # Figures of a baseline, each file named after the examples that they were measured on.
    examples = {
        f"{Path(a.uri).name}.json"
        for a in artifacts
        if a.type == "Examples" and a.id in needed.artifacts
    }
    for file in (workspace.root / "baselines").glob("*"):
        if file.name not in examples:
            yield "leftover", file


def _set_state(
    store: MetadataStore, artifacts: Sequence[metadata_store_pb2.Artifact], state: int
) -> None:
    for artifact in artifacts:
        artifact.state = state
    if artifacts:
        store.put_artifacts(artifacts, ["state"])


def _newest(path: Path) -> float:
    """When something in a folder was last changed, seconds since 1970."""
    times = [path.stat().st_mtime]
    times += [entry.stat().st_mtime for entry in path.rglob("*") if entry.is_file()]
    return max(times)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(entry.lstat().st_size for entry in path.rglob("*") if not entry.is_dir())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
