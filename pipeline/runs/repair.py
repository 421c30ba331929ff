"""Finds a damaged `metadata.db`, and begins a new one with what the output folder still tells."""

import json
import logging
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from ml_metadata import MetadataStore
from ml_metadata.proto.metadata_store_pb2 import (
    Artifact,
    Context,
    ContextType,
    Event,
    Execution,
    ExecutionType,
)

from components.pusher.pushed_models import MODEL_ID, custom_int, custom_text
from data_ingest.durable import copy_durably, rename_durably
from data_ingest.errors import InputError
from pipeline.runs.history import RunHistory, RunRecord
from pipeline.runs.metadata_store import parse_url
from pipeline.runs.status import Status
from pipeline.runs.summary import SUMMARY_FILE, read_summary
from pipeline.runs.workspace import Workspace, new_run_id
from serving.saved_model.versions import is_complete, version_folders

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repaired:
    """What a new history begins with, and the folder with what was damaged."""

    versions: list[int]
    runs: int
    damaged: Path


def damage(file: Path, workspace: Workspace) -> str:
    """What is wrong with a SQLite file of ML Metadata; empty where nothing is, or nothing has run.

    Without the file executions would be numbered anew, and the folders named after them are there.

    Not to be called while this process has the file open by ML Metadata, whose SQLite is another
    than Python's: closing the file would give up its locks.
    """
    has_run = workspace.artifacts.is_dir() and any(workspace.artifacts.iterdir())
    if not file.is_file():
        return "missing" if has_run else ""
    if not file.stat().st_size:
        return "empty" if has_run or _served(workspace) else ""
    try:
        with closing(sqlite3.connect(file)) as database:
            found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:
        # Locked, or it may not be read: ML Metadata says so itself.
        return ""
    except sqlite3.DatabaseError as error:
        found = str(error)
    return "" if found == "ok" else f"damaged ({found.splitlines()[-1]})"


def refuse_damaged(file: Path | None, workspace: Workspace) -> None:
    """Raises InputError where something is wrong with a SQLite file; None stands for a server."""
    if file is not None and (reason := damage(file, workspace)):
        raise InputError(
            f"{file} is {reason}. Put a copy of it back if you have one; else `oneshot "
            f"doctor --repair --output {workspace.root}` begins a new history with the versions "
            "that are served and the runs that can still be read"
        )


def repair(file: Path, workspace: Workspace, *, pipeline_name: str) -> Repaired:
    """Replaces a damaged or missing file, and moves it and all artifacts to a folder beside.

    The new one knows the versions that can be served, so that the next model is compared with the
    newest of them, and the runs, from the old file as far as it can be read, else from their
    summaries. Nothing comes from the cache any more. Interrupted, it can be called again.

    Args:
      file: of ML Metadata.
      workspace: the output folder, whose lease the caller holds: nothing runs.
      pipeline_name: as in the configuration.

    Raises:
      OSError: something cannot be read or written; the damaged file is where it was.
    """
    damaged = workspace.root / f"damaged-{new_run_id()}"
    damaged.mkdir()
    runs = {run.run_id: run for run in _summarized(workspace)}
    if file.exists():
        shutil.copyfile(file, damaged / file.name)
        runs |= {run.run_id: run for run in _readable(damaged / file.name)}
    if workspace.artifacts.exists():
        # Numbers of executions, after which folders are named, begin anew.
        workspace.artifacts.rename(damaged / "artifacts")
    new = file.with_name(f".{file.name}.repaired")
    new.unlink(missing_ok=True)
    connection = parse_url(f"sqlite:///{quote(str(new))}").connection()
    history = RunHistory(connection)
    for run in runs.values():
        history.record(run)
    served = _served(workspace)
    _adopt(served, MetadataStore(connection), workspace, pipeline_name=pipeline_name)
    for journal in ("-journal", "-wal", "-shm"):
        # Of the damaged file: SQLite would apply it to the new one.
        file.with_name(file.name + journal).unlink(missing_ok=True)
    rename_durably(new, file)
    return Repaired(sorted(served), len(runs), damaged)


def restore_models(store: MetadataStore, workspace: Workspace) -> None:
    """Copies back, from the version that is served, pushed models whose artifact was deleted.

    A later model is compared with them. Where the version has gone too they no longer count.
    """
    from tfx.utils import path_utils

    models = {model.id: model for model in store.get_artifacts_by_type("Model")}
    for pushed in store.get_artifacts_by_type("PushedModel"):
        model = models.get(custom_int(pushed, MODEL_ID))
        if model is None or model.state != Artifact.LIVE or Path(model.uri).exists():
            continue
        version = workspace.serving_model / custom_text(pushed, "pushed_version")
        if is_complete(version):
            _log.warning("%s is gone; it is copied from version %s", model.uri, version.name)
            staged = Path(f"{model.uri}.partial")
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            copy_durably(version, Path(path_utils.serving_model_dir(str(staged))))
            rename_durably(staged, Path(model.uri))
        else:
            _log.warning("%s is gone, and so is version %s", model.uri, version.name)
            model.state = Artifact.DELETED
            store.put_artifacts([model], ["state"])


def _served(workspace: Workspace) -> dict[int, Path]:
    base = workspace.serving_model
    found = version_folders(base) if base.is_dir() else {}
    return {version: folder for version, folder in found.items() if is_complete(folder)}


def _adopt(
    served: Mapping[int, Path], store: MetadataStore, workspace: Workspace, *, pipeline_name: str
) -> None:
    """Makes versions known as models that were pushed, as the Pusher would have, the oldest first.

    Only what both the Evaluator and the ServingGate blessed has been pushed, and what was rolled
    back has no number for its name any more.
    """
    from tfx.types import standard_artifacts
    from tfx.utils import path_utils

    context_type = store.put_context_type(
        ContextType(name="pipeline"), can_add_fields=True, can_omit_fields=True
    )
    context = Context(type_id=context_type, name=pipeline_name)
    execution_type = store.put_execution_type(ExecutionType(name="oneshot.Repair"))
    for version, folder in served.items():
        model, pushed = standard_artifacts.Model(), standard_artifacts.PushedModel()
        for artifact, key in ((model, "model"), (pushed, "pushed_model")):
            uri = workspace.artifacts / "repaired" / key / str(version)
            uri.mkdir(parents=True)
            artifact.uri = str(uri)
            artifact.mlmd_artifact.type_id = store.put_artifact_type(artifact.artifact_type)
            artifact.mlmd_artifact.state = Artifact.LIVE
        copy_durably(folder, Path(path_utils.serving_model_dir(model.uri)))
        (model_id,) = store.put_artifacts([model.mlmd_artifact])
        model.id = model_id
        pushed.set_int_custom_property("pushed", 1)
        pushed.set_string_custom_property("pushed_destination", str(folder))
        pushed.set_string_custom_property("pushed_version", str(version))
        pushed.set_int_custom_property(MODEL_ID, model_id)
        made = [(one.mlmd_artifact, Event(type=Event.OUTPUT)) for one in (model, pushed)]
        execution = Execution(type_id=execution_type, last_known_state=Execution.COMPLETE)
        store.put_execution(execution, made, [context], reuse_context_if_already_exist=True)


def _readable(file: Path) -> Iterator[RunRecord]:
    """Records of runs before the first damaged page of their table, and after the last."""
    for order in ("ASC", "DESC"):
        try:
            with closing(sqlite3.connect(file)) as database:
                query = "SELECT string_value FROM ContextProperty NOT INDEXED WHERE name = ?"
                rows = database.execute(f"{query} ORDER BY rowid {order}", ("oneshot_run",))
                for (text,) in rows:
                    yield RunRecord.from_dict(json.loads(text))
        except (sqlite3.DatabaseError, ValueError, LookupError, TypeError):
            continue


def _summarized(workspace: Workspace) -> Iterator[RunRecord]:
    """What the summaries of runs tell; of which span they were is not in there."""
    for path in sorted(workspace.runs.glob(f"[0-9]*/{SUMMARY_FILE}")):
        try:
            summary = read_summary(path.parent)
            metric, accuracy = summary.headline
            yield RunRecord(
                run_id=summary.run_id,
                state=Status.DONE,
                started=datetime.strptime(summary.run_id[:15], "%Y%m%d-%H%M%S").timestamp(),
                dataset=summary.dataset,
                accuracy=accuracy,
                accuracy_metric=metric,
                blessed=summary.blessed,
                pushed_version=summary.pushed_version,
                seconds=summary.seconds.get("total"),
            )
        except (OSError, ValueError, LookupError, TypeError):
            continue
