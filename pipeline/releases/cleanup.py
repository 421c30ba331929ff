"""What an output folder still needs: which versions, runs and artifacts have to stay."""

import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2

from components.pusher.pushed_models import (
    MODEL_ID,
    custom_int,
    custom_text,
    is_pushed,
    sound_models,
)
from components.pusher.versions import remove_stale, remove_version
from data_ingest.errors import InputError
from pipeline.releases.promotion import LABELS, Promotions
from pipeline.runs.history import RunRecord
from pipeline.runs.workspace import Workspace
from serving.saved_model.versions import rolled_back_versions, versions

_DAY: Final = 86_400.0
_RUN_CONTEXT: Final = "pipeline_run"
# Of the run that pushed a version these stay as long as the version does; its examples do not.
_OF_A_VERSION: Final = frozenset(
    {"Model", "ModelBlessing", "InfraBlessing", "ModelEvaluation", "PushedModel"}
)


@dataclass(frozen=True)
class Retention:
    """How much is kept: what is among the newest, or recent, stays.

    Attributes:
      versions: so many of the newest versions, at least 1.
      days: every run of so many days, with all that it used and made.
    """

    versions: int = 5
    days: float = 30.0

    def __post_init__(self) -> None:
        if self.versions < 1:
            raise InputError(f"--keep-versions: at least 1, not {self.versions}")
        if not 0 <= self.days <= 100_000:
            raise InputError(f"--keep-days: a number of days, not {self.days:g}")

    def since(self, now: float) -> float:
        """What is not older than this instant is recent; seconds since 1970, like `now`."""
        return now - self.days * _DAY


@dataclass(frozen=True)
class Needed:
    """What has to stay.

    Attributes:
      versions: with the first reason found.
      rolled_back: versions taken out of service whose files are still of interest.
      runs: ids of runs whose reports and logs stay.
      executions: of runs that may still be continued or repeated from the cache.
      artifacts: ids in ML Metadata.
    """

    versions: dict[int, str]
    rolled_back: set[int]
    runs: set[str]
    executions: set[int]
    artifacts: set[int]


def find_needed(
    *,
    workspace: Workspace,
    store: MetadataStore,
    runs: Iterable[RunRecord],
    artifacts: Iterable[metadata_store_pb2.Artifact],
    promotions: Promotions,
    keep: Retention,
    now: float,
) -> Needed:
    """Decides what stays.

    That is: versions that have a label, that servers load, that a rollback goes back to, the
    newest ones and the recent ones; the model that the next one is compared with or starts from;
    recent runs, the newest and the newest that was completed, with all their artifacts, so that
    they are repeated from the cache; and of the runs that pushed the kept versions their reports
    and what belongs to the model.

    Args:
      workspace: the output folder.
      store: ML Metadata.
      runs: the history.
      artifacts: all there are.
      promotions: the labels.
      keep: how much.
      now: seconds since 1970.
    """
    since = keep.since(now)
    history = sorted(runs, key=lambda run: run.started, reverse=True)
    repeated = _repeated_runs(workspace, history, since)
    state = metadata_store_pb2.Artifact.LIVE
    live = [artifact for artifact in artifacts if artifact.state == state]
    pushes = [a for a in live if a.type == "PushedModel" and is_pushed(a)]
    models = [artifact for artifact in live if artifact.type == "Model"]
    baseline = {model.id for model in sound_models(models, pushes)[-1:]}

    kept = _labelled_and_newest(promotions, keep)
    for run in history:
        if run.run_id in repeated and run.pushed_version is not None:
            kept.setdefault(run.pushed_version, f"run {run.run_id}")
    for push in pushes:
        if custom_int(push, MODEL_ID) in baseline:
            kept.setdefault(_version(push), "baseline of the next run")
    known = {run.pushed_version for run in history}
    for version in versions(workspace.serving_model):
        folder = workspace.serving_model / str(version)
        if version not in known and folder.stat().st_mtime >= since:
            kept.setdefault(version, "recent, of no known run")
    there = set(versions(workspace.serving_model))
    kept = {version: reason for version, reason in sorted(kept.items()) if version in there}

    pushers = {run.pushed_version: run.run_id for run in reversed(history)}
    reported = {pushers[version] for version in kept if version in pushers} - repeated
    executions, used = _used(store, repeated)
    of_a_version = {artifact.id for artifact in live if artifact.type in _OF_A_VERSION}
    used |= _used(store, reported)[1] & of_a_version
    used |= baseline | {custom_int(push, MODEL_ID) for push in pushes if _version(push) in kept}
    # Without its push a model would not be found as the baseline that it was for a kept run.
    used |= {push.id for push in pushes if custom_int(push, MODEL_ID) in used}
    return Needed(
        versions=kept,
        rolled_back=_rolled_back(workspace, promotions, since),
        runs=repeated | reported,
        executions=executions,
        artifacts=used,
    )


def _repeated_runs(workspace: Workspace, history: Sequence[RunRecord], since: float) -> set[str]:
    """Runs that may be continued or repeated, and then are served from the cache."""
    found = {run.run_id for run in history if run.started >= since}
    found |= {run.run_id for run in history[:1]}
    found |= {run.run_id for run in [run for run in history if run.is_whole][:1]}
    if workspace.latest_run.is_symlink():
        found.add(workspace.latest_run.readlink().name)
    return found


def _labelled_and_newest(promotions: Promotions, keep: Retention) -> dict[int, str]:
    standing = promotions.standing()
    kept = {version: label for label, version in standing.labels.items()}
    for version in standing.versions[-1:]:
        kept.setdefault(version, "newest")
    for label in LABELS:
        if (target := promotions.rollback_target(label)) is not None:
            kept.setdefault(target, "where a rollback goes")
    for version in promotions.loaded():
        kept.setdefault(version, "loaded by servers")
    for version in standing.versions[-keep.versions :]:
        kept.setdefault(version, f"among the newest {keep.versions}")
    return kept


def _version(pushed_model: metadata_store_pb2.Artifact) -> int:
    return int(custom_text(pushed_model, "pushed_version"))


def _rolled_back(workspace: Workspace, promotions: Promotions, since: float) -> set[int]:
    when = {
        change.version: change.when
        for change in promotions.standing().history
        if change.withdrawn is not None
    }
    return {
        version
        for version, folder in rolled_back_versions(workspace.serving_model).items()
        if when.get(version, folder.stat().st_mtime) >= since
    }


def _used(store: MetadataStore, runs: Iterable[str]) -> tuple[set[int], set[int]]:
    """Executions of runs, and the artifacts that they read or wrote."""
    executions = set(_executions(store, runs))
    if not executions:
        return set(), set()
    events = store.get_events_by_execution_ids(sorted(executions))
    return executions, {event.artifact_id for event in events}


def _executions(store: MetadataStore, runs: Iterable[str]) -> Iterator[int]:
    for run_id in sorted(runs):
        context = store.get_context_by_type_and_name(_RUN_CONTEXT, run_id)
        if context is not None:
            for execution in store.get_executions_by_context(context.id):
                yield execution.id


def artifacts_in(workspace: Workspace, store: MetadataStore) -> list[metadata_store_pb2.Artifact]:
    """All artifacts in ML Metadata.

    Raises:
      InputError: one of them is not in this output folder.
    """
    artifacts: list[metadata_store_pb2.Artifact] = store.get_artifacts()
    for artifact in artifacts:
        is_gone = artifact.state == metadata_store_pb2.Artifact.DELETED
        if not is_gone and workspace.artifacts not in Path(artifact.uri).parents:
            raise InputError(
                f"{workspace.artifacts}: ML Metadata has artifacts elsewhere ({artifact.uri}), so "
                "what lies here cannot be told from what is needed; give --output as it was when "
                "they were made"
            )
    return artifacts


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
