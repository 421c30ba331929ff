"""Removes what an output folder no longer needs: versions, artifacts, reports, checkpoints."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from ml_metadata import MetadataStore
from ml_metadata.proto.metadata_store_pb2 import Artifact

from components.pusher.pushed_models import (
    MODEL_ID,
    custom_int,
    is_pushed,
    pushed_version,
    sound_models,
)
from components.pusher.versions import remove_stale, remove_version
from data_ingest.errors import InputError
from pipeline.releases.promotion import Promotions
from pipeline.runs.history import RUN_CONTEXT, RunRecord
from serving.deploy.models_config import LABELS
from serving.saved_model.versions import rolled_back_versions, versions

_DAY: Final = 86_400.0
# Of the run that pushed a version these stay as long as the version does; its examples do not.
_OF_A_VERSION: Final = frozenset(
    {"Model", "ModelBlessing", "InfraBlessing", "ModelEvaluation", "PushedModel"}
)
Kind = Literal["version", "rolled-back version", "artifact", "run", "checkpoint", "leftover"]


@dataclass(frozen=True)
class Removal:
    """Something that goes, and the bytes of its files."""

    kind: Kind
    path: Path
    bytes: int


@dataclass(frozen=True)
class GcReport:
    """What was removed, or would be."""

    kept_versions: dict[int, str]
    """Versions that stay, and why."""
    removed: list[Removal]
    """In no particular order."""

    @property
    def total_bytes(self) -> int:
        return sum(removal.bytes for removal in self.removed)


def collect_garbage(
    promotions: Promotions,
    runs: Sequence[RunRecord],
    *,
    keep_versions: int,
    keep_days: float,
    now: float,
    dry_run: bool = False,
) -> GcReport:
    """Removes all but what is still needed.

    What stays are versions that have a label, that servers load, that a rollback goes back to, the
    newest ones and the recent ones; the model that the next one is compared with or starts from;
    recent runs, the newest and the newest that was completed, with all their artifacts, so that
    they are repeated from the cache; and of the runs that pushed the kept versions their reports
    and what belongs to the model. Spans, generated data and whatever else the pipeline did not make
    of its own are not touched.

    Args:
      promotions: of the output folder, whose lease the caller holds: nothing runs.
      runs: its history.
      keep_versions: so many of the newest versions stay, at least 1.
      keep_days: every run of so many days stays, with all that it used and made.
      now: seconds since 1970.
      dry_run: only tell.

    Raises:
      InputError: so much cannot be kept, `models.config` cannot be read, or the artifacts are in
        another folder.
      OSError: something cannot be removed; calling again continues.
    """
    if keep_versions < 1:
        raise InputError(f"--keep-versions: at least 1, not {keep_versions}")
    if not 0 <= keep_days <= 100_000:
        raise InputError(f"--keep-days: a number of days, not {keep_days:g}")
    store, base = promotions.store, promotions.workspace.serving_model
    with promotions.unchanged():
        if not dry_run:
            promotions.complete()
        since = now - keep_days * _DAY
        folder = _Folder(promotions, runs, keep_versions, since)
        doomed = list(folder.doomed_artifacts())
        going: list[tuple[Kind, Path]] = [("artifact", Path(artifact.uri)) for artifact in doomed]
        going += folder.unneeded()
        removals = [Removal(kind, path, _size(path)) for kind, path in going]
        report = GcReport(folder.needed_versions, removals)
        if dry_run:
            return report
        _set_state(store, doomed, Artifact.MARKED_FOR_DELETION)
        for removal in removals:
            if removal.kind == "version":
                remove_version(base, int(removal.path.name))
    if base.is_dir():
        remove_stale(base)
    for removal in removals:
        if removal.kind == "rolled-back version":
            # The empty folder stays: its number is not given to another model.
            for entry in removal.path.iterdir():
                _remove(entry)
        elif removal.kind != "version":
            _remove(removal.path)
    _set_state(store, doomed, Artifact.DELETED)
    return report


@dataclass
class _Folder:
    """What is in an output folder, and what of it has to stay."""

    promotions: Promotions
    runs: Iterable[RunRecord]
    keep_versions: int
    since: float  # what is not older is recent

    def __post_init__(self) -> None:
        self.workspace, self.store = self.promotions.workspace, self.promotions.store
        self._history = sorted(self.runs, key=lambda run: run.started, reverse=True)
        self._artifacts: list[Artifact] = self.store.get_artifacts()
        # One folder may go by several names: links, and paths that earlier releases kept as given.
        self._root = self.workspace.artifacts.resolve()
        there = (one for one in self._artifacts if one.state != Artifact.DELETED)
        self._places = {Path(artifact.uri).resolve() for artifact in there}
        for place in self._places:
            if self._root not in place.parents:
                raise InputError(
                    f"{self._root}: ML Metadata has artifacts elsewhere ({place}), "
                    "so what lies here cannot be told from what is needed; give --output as it was "
                    "when they were made"
                )
        self._live = [one for one in self._artifacts if one.state == Artifact.LIVE]
        self._pushes = [one for one in self._live if one.type == "PushedModel" and is_pushed(one)]
        models = [artifact for artifact in self._live if artifact.type == "Model"]
        self._baseline = {model.id for model in sound_models(models, self._pushes)[-1:]}

    @cached_property
    def needed_versions(self) -> dict[int, str]:
        """Versions that stay, each with the first reason found."""
        standing = self.promotions.standing()
        kept = {version: label for label, version in standing.labels.items()}
        for version in standing.versions[-1:]:
            kept.setdefault(version, "newest")
        for label in LABELS:
            if (target := self.promotions.rollback_target(label)) is not None:
                kept.setdefault(target, "where a rollback goes")
        for version in self.promotions.loaded():
            kept.setdefault(version, "loaded by servers")
        for version in standing.versions[-self.keep_versions :]:
            kept.setdefault(version, f"among the newest {self.keep_versions}")
        for run in self._history:
            if run.run_id in self._repeated_runs and run.pushed_version is not None:
                kept.setdefault(run.pushed_version, f"run {run.run_id}")
        for push in self._pushes:
            if custom_int(push, MODEL_ID) in self._baseline:
                kept.setdefault(pushed_version(push), "baseline of the next run")
        known = {run.pushed_version for run in self._history}
        for version in standing.versions:
            folder = self.workspace.serving_model / str(version)
            if version not in known and folder.stat().st_mtime >= self.since:
                kept.setdefault(version, "recent, of no known run")
        return {version: kept[version] for version in standing.versions if version in kept}

    @cached_property
    def _repeated_runs(self) -> set[str]:
        """Runs that may be continued or repeated, and then are served from the cache."""
        found = {run.run_id for run in self._history if run.started >= self.since}
        found |= {run.run_id for run in self._history[:1]}
        found |= {run.run_id for run in [run for run in self._history if run.is_whole][:1]}
        if self.workspace.latest_run.is_symlink():
            found.add(self.workspace.latest_run.readlink().name)
        return found

    @cached_property
    def _reported_runs(self) -> set[str]:
        """Others whose reports and logs stay: those that pushed a version that stays."""
        pushers = {run.pushed_version: run.run_id for run in reversed(self._history)}
        kept = self.needed_versions
        return {pushers[version] for version in kept if version in pushers} - self._repeated_runs

    @cached_property
    def _needed_artifacts(self) -> set[int]:
        used = self._used_by(self._executions(self._repeated_runs))
        of_a_version = {one.id for one in self._live if one.type in _OF_A_VERSION}
        used |= self._used_by(self._executions(self._reported_runs)) & of_a_version
        used |= self._baseline
        kept = self.needed_versions
        used |= {custom_int(one, MODEL_ID) for one in self._pushes if pushed_version(one) in kept}
        # Without its push a model would not be found as the baseline that it was for a kept run.
        return used | {push.id for push in self._pushes if custom_int(push, MODEL_ID) in used}

    def _executions(self, runs: Iterable[str]) -> set[int]:
        contexts = [self.store.get_context_by_type_and_name(RUN_CONTEXT, run) for run in runs]
        return {
            execution.id
            for context in contexts
            if context is not None
            for execution in self.store.get_executions_by_context(context.id)
        }

    def _used_by(self, executions: set[int]) -> set[int]:
        """Artifacts that the executions read or wrote."""
        events = self.store.get_events_by_execution_ids(sorted(executions)) if executions else []
        return {event.artifact_id for event in events}

    def doomed_artifacts(self) -> Iterator[Artifact]:
        """Artifacts to delete: unneeded ones, and those that an earlier call did not finish."""
        stays = {one.uri for one in self._artifacts if one.id in self._needed_artifacts}
        for artifact in self._artifacts:
            needed = artifact.id in self._needed_artifacts or artifact.uri in stays
            if artifact.state == Artifact.MARKED_FOR_DELETION or (
                artifact.state == Artifact.LIVE and not needed
            ):
                yield artifact

    def unneeded(self) -> Iterator[tuple[Kind, Path]]:
        """What goes besides artifacts."""
        workspace = self.workspace
        base = workspace.serving_model
        for version in versions(base):
            if version not in self.needed_versions:
                yield "version", base / str(version)
        withdrawn = {change.withdrawn: change.when for change in self.promotions.standing().history}
        for version, folder in rolled_back_versions(base).items():
            recent = withdrawn.get(version, folder.stat().st_mtime) >= self.since
            if not recent and any(folder.iterdir()):
                yield "rolled-back version", folder
        recorded = {run.run_id for run in self._history}
        for folder in workspace.runs.glob("[!.]*"):
            # Of a run that never got as far as the history there is only the time.
            old = folder.name in recorded or _newest(folder) < self.since
            needed = folder.name in self._repeated_runs | self._reported_runs
            # Beside them are the link to the latest and the index.
            if old and not needed and folder.is_dir() and not folder.is_symlink():
                yield "run", folder
        for folder in workspace.checkpoints.glob("*"):
            if _newest(folder) < self.since:
                yield "checkpoint", folder
        known = self._places | {parent for place in self._places for parent in place.parents}
        for folder in self._root.glob("[!.]*/[!.]*/*"):
            if folder not in known:
                yield "leftover", folder
        executions = self._executions(self._repeated_runs)
        for folder in workspace.artifacts.glob("*/.system/*/*"):
            if not (folder.name.isdigit() and int(folder.name) in executions):
                yield "leftover", folder
        # Figures of a baseline, each file named after the examples that they were measured on.
        needed_artifacts = [one for one in self._artifacts if one.id in self._needed_artifacts]
        examples = {Path(one.uri).name for one in needed_artifacts if one.type == "Examples"}
        for file in (workspace.root / "baselines").glob("*"):
            if file.suffix != ".json" or file.stem not in examples:
                yield "leftover", file


def _set_state(store: MetadataStore, artifacts: Sequence[Artifact], state: int) -> None:
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
