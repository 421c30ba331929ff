"""Keeps the history of runs in ML Metadata: on what data, how good, and what became of them."""

import errno
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import ml_metadata
from ml_metadata.errors import StatusError
from ml_metadata.proto.metadata_store_pb2 import (
    Artifact,
    ConnectionConfig,
    Context,
    ContextType,
    Event,
    Execution,
)

from pipeline.runs.status import Status
from pipeline.settings import JUDGED_STAGES, Stage

_log = logging.getLogger(__name__)
RUN_CONTEXT = "pipeline_run"
"""Type of the ML Metadata context of a run, whose name is the run's id."""
SQLITE_FULL = "database or disk is full"
"""In an error of ML Metadata."""
_NODE_CONTEXT = "node"
_RECORD_PROPERTY = "oneshot_run"
_OUTPUT = (Event.OUTPUT, Event.INTERNAL_OUTPUT)


@dataclass(frozen=True)
class RunRecord:
    """One run as the history tells it. Times are seconds since 1970, accuracies in [0, 1]."""

    run_id: str
    state: Status
    started: float
    dataset: str = ""
    command: str = "run"  # the `oneshot` command: run or retrain
    stage: Stage = "push"  # how far it was to go; push is the whole
    span: int | None = None
    window: tuple[int, ...] = ()  # the spans trained on
    attempt: int = 1  # counts the tries of one retraining
    trigger: str = ""  # why a retraining: span (asked for) or new (arrived)
    drift: str = ""  # how the span differs from those before it, if it does
    label: str = ""  # what the version was to be promoted to if it is pushed
    promoted: bool = False  # whether that has been done
    accuracy: float | None = None
    accuracy_metric: str = ""
    blessed: bool | None = None
    pushed_version: int | None = None
    seconds: float | None = None
    error: str = ""

    @property
    def is_judged(self) -> bool:
        """Whether it went as far as to say how good the model is."""
        return self.state == Status.DONE and self.stage in JUDGED_STAGES

    @property
    def is_whole(self) -> bool:
        """Whether it went all the way: what comes of a span is known then."""
        return self.state == Status.DONE and self.stage == "push"

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "RunRecord":
        """Inverse of `dataclasses.asdict` after a trip through JSON, also of other versions."""
        names = {field.name for field in fields(RunRecord)}
        known = {name: value for name, value in values.items() if name in names}
        known |= {"state": Status(values["state"]), "window": tuple(values.get("window", ()))}
        return RunRecord(**known)


@dataclass(frozen=True)
class NodeRun:
    """One node of one run: the execution, whether it came from the cache, and its outputs."""

    node_id: str
    cached: bool
    seconds: float
    """What the work took, in the run that did it."""
    outputs: dict[str, Artifact]
    """By key; of several under one key the first."""
    inputs: tuple[int, ...] = ()
    """Ids of the artifacts that it read."""


class RunHistory:
    """The runs of one ML Metadata store."""

    def __init__(self, connection: ConnectionConfig) -> None:
        """Opens the store, and makes its tables if they are not there.

        Raises:
          RuntimeError: it cannot be opened.
        """
        self._store = ml_metadata.MetadataStore(connection)

    def record(self, run: RunRecord) -> None:
        """Writes (or rewrites) the record of a run into its MLMD context.

        Raises:
          OSError: the disk is full.
        """
        context = self._store.get_context_by_type_and_name(RUN_CONTEXT, run.run_id)
        if context is None:
            # As TFX registers it when the run's first node starts.
            type_id = self._store.put_context_type(
                ContextType(name=RUN_CONTEXT), can_add_fields=True, can_omit_fields=True
            )
            context = Context(type_id=type_id, name=run.run_id)
        context.custom_properties[_RECORD_PROPERTY].string_value = json.dumps(asdict(run))
        with _naming_full_disk():
            self._store.put_contexts([context])

    def runs(self) -> list[RunRecord]:
        """All recorded runs, the newest first."""
        records = []
        for context in self._store.get_contexts_by_type(RUN_CONTEXT):
            text = context.custom_properties[_RECORD_PROPERTY].string_value
            if text:
                records.append(RunRecord.from_dict(json.loads(text)))
        return sorted(records, key=lambda run: run.started, reverse=True)

    def nodes(self, run_id: str) -> list[NodeRun]:
        """The finished nodes of a run in the order they ran."""
        context = self._store.get_context_by_type_and_name(RUN_CONTEXT, run_id)
        if context is None:
            return []
        executions = self._store.get_executions_by_context(context.id)
        finished = [
            e for e in executions if e.last_known_state in (Execution.COMPLETE, Execution.CACHED)
        ]
        return [self._node_run(e) for e in sorted(finished, key=lambda e: e.id)]

    def close_interrupted(self, artifacts: Path) -> list[str]:
        """Marks what a killed process left running, and deletes its half-written outputs.

        Only for the owner of the store: nothing else may be running.

        Returns:
          node ids whose execution had been cut off.

        Raises:
          OSError: the disk is full.
        """
        cut_off = []
        for execution in self._store.get_executions():
            if execution.last_known_state in (Execution.RUNNING, Execution.NEW):
                execution.last_known_state = Execution.FAILED
                with _naming_full_disk():
                    self._store.put_executions([execution])
                cut_off.append(self._node_id(execution))
                # TFX lays outputs out as <root>/<node>/<key>/<execution id>.
                for folder in artifacts.glob(f"*/*/{execution.id}"):
                    shutil.rmtree(folder, ignore_errors=True)
        for run in self.runs():
            if run.state == Status.RUNNING:
                self.record(replace(run, state=Status.INTERRUPTED))
        return cut_off

    def _node_run(self, execution: Execution) -> NodeRun:
        cached = execution.last_known_state == Execution.CACHED
        outputs: dict[str, Artifact] = {}
        inputs = []
        for event in self._store.get_events_by_execution_ids([execution.id]):
            key = event.path.steps[0].key if event.path.steps else ""
            if event.type not in _OUTPUT:
                inputs.append(event.artifact_id)
            elif key not in outputs:
                (outputs[key],) = self._store.get_artifacts_by_id([event.artifact_id])
        done = self._source(outputs.values()) if cached else execution
        milliseconds = done.last_update_time_since_epoch - done.create_time_since_epoch
        return NodeRun(
            self._node_id(execution), cached, milliseconds / 1000, outputs, tuple(inputs)
        )

    def _source(self, outputs: Iterable[Artifact]) -> Execution:
        """The execution that made outputs which the cache gave out; an empty one if it is gone."""
        events = self._store.get_events_by_artifact_ids([artifact.id for artifact in outputs])
        makers = {e.execution_id for e in events if e.type in _OUTPUT}
        executions = self._store.get_executions_by_id(sorted(makers))
        done = (e for e in executions if e.last_known_state == Execution.COMPLETE)
        return next(done, Execution())

    def _node_id(self, execution: Execution) -> str:
        for context in self._store.get_contexts_by_execution(execution.id):
            if context.type == _NODE_CONTEXT:
                # Named <pipeline>.<node>; pipeline names hold no dot.
                return str(context.name).partition(".")[2]
        return "unknown"


@contextmanager
def _naming_full_disk() -> Iterator[None]:
    """In ML Metadata's own error there is SQL, and no word on what to do."""
    try:
        yield
    except StatusError as error:
        if SQLITE_FULL not in str(error):
            raise
        message = "no space left for ML Metadata; free some and run the same command again"
        raise OSError(errno.ENOSPC, message) from error
