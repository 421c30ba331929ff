"""Run history in ML Metadata: what ran, on what data, how good it was, and what became of it."""

import json
import logging
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import ml_metadata
from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import metadata
from tfx.orchestration.portable.mlmd import context_lib

_LOGGER = logging.getLogger(__name__)
_RUN_CONTEXT = "pipeline_run"
_NODE_CONTEXT = "node"
_RECORD_PROPERTY = "oneshot_run"
_Execution = metadata_store_pb2.Execution


@dataclass(frozen=True)
class RunRecord:
    """One run as the history tells it. Times are seconds since 1970, accuracies in [0, 1]."""

    run_id: str
    state: str  # running, done, failed or interrupted
    started: float
    dataset: str = ""
    accuracy: float | None = None
    accuracy_metric: str = ""
    blessed: bool | None = None
    pushed_version: int | None = None
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class NodeRun:
    """One node of one run: the execution, whether it came from the cache, and its outputs."""

    node_id: str
    cached: bool
    seconds: float
    outputs: dict[str, list[metadata_store_pb2.Artifact]]


def sqlite_connection(path: Path) -> metadata_store_pb2.ConnectionConfig:
    """Connection to a store in one SQLite file, made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    config: metadata_store_pb2.ConnectionConfig = metadata.sqlite_metadata_connection_config(
        str(path)
    )
    return config


class RunHistory:
    """The runs of one ML Metadata store."""

    def __init__(self, connection: metadata_store_pb2.ConnectionConfig) -> None:
        self._connection = connection
        self._store = ml_metadata.MetadataStore(connection)

    def record(self, run: RunRecord) -> None:
        """Writes (or rewrites) the record of a run into its MLMD context."""
        with metadata.Metadata(self._connection) as handle:
            context = context_lib.register_context_if_not_exists(
                handle, context_type_name=_RUN_CONTEXT, context_name=run.run_id
            )
        context.custom_properties[_RECORD_PROPERTY].string_value = json.dumps(asdict(run))
        self._store.put_contexts([context])

    def runs(self) -> list[RunRecord]:
        """All recorded runs, the newest first."""
        known = {field.name for field in fields(RunRecord)}
        records = []
        for context in self._store.get_contexts_by_type(_RUN_CONTEXT):
            text = context.custom_properties[_RECORD_PROPERTY].string_value
            if text:
                values = json.loads(text)
                records.append(RunRecord(**{k: v for k, v in values.items() if k in known}))
        return sorted(records, key=lambda run: run.started, reverse=True)

    def nodes(self, run_id: str) -> list[NodeRun]:
        """The finished nodes of a run in the order they ran."""
        context = self._store.get_context_by_type_and_name(_RUN_CONTEXT, run_id)
        if context is None:
            return []
        executions = self._store.get_executions_by_context(context.id)
        finished = [
            e for e in executions if e.last_known_state in (_Execution.COMPLETE, _Execution.CACHED)
        ]
        return [self._node_run(e) for e in sorted(finished, key=lambda e: e.id)]

    def close_interrupted(self, artifacts: Path) -> list[str]:
        """Marks what a killed process left running, and deletes its half-written outputs.

        Only for the owner of the store: nothing else may be running.

        Returns:
          node ids whose execution had been cut off.
        """
        cut_off = []
        for execution in self._store.get_executions():
            if execution.last_known_state in (_Execution.RUNNING, _Execution.NEW):
                execution.last_known_state = _Execution.FAILED
                self._store.put_executions([execution])
                cut_off.append(self._node_id(execution))
                # TFX lays outputs out as <root>/<node>/<key>/<execution id>.
                for folder in artifacts.glob(f"*/*/{execution.id}"):
                    shutil.rmtree(folder, ignore_errors=True)
        for run in self.runs():
            if run.state == "running":
                self.record(RunRecord(**{**asdict(run), "state": "interrupted"}))
        return cut_off

    def _node_run(self, execution: metadata_store_pb2.Execution) -> NodeRun:
        cached = execution.last_known_state == _Execution.CACHED
        milliseconds = execution.last_update_time_since_epoch - execution.create_time_since_epoch
        outputs: dict[str, list[metadata_store_pb2.Artifact]] = {}
        events = self._store.get_events_by_execution_ids([execution.id])
        artifacts = {
            a.id: a for a in self._store.get_artifacts_by_id([e.artifact_id for e in events])
        }
        for event in events:
            if event.type in (
                metadata_store_pb2.Event.OUTPUT,
                metadata_store_pb2.Event.INTERNAL_OUTPUT,
            ):
                key = next((step.key for step in event.path.steps if step.key), "")
                outputs.setdefault(key, []).append(artifacts[event.artifact_id])
        return NodeRun(
            node_id=self._node_id(execution),
            cached=cached,
            seconds=0.0 if cached else milliseconds / 1000,
            outputs=outputs,
        )

    def _node_id(self, execution: metadata_store_pb2.Execution) -> str:
        for context in self._store.get_contexts_by_execution(execution.id):
            if context.type == _NODE_CONTEXT:
                # Named <pipeline>.<node>; pipeline names hold no dot.
                return str(context.name).partition(".")[2]
        return "unknown"
