"""An output folder as runs leave it, made in a moment: files and ML Metadata, no training.

What is written, and the rules of the cache, are those of a run by TFX's LocalDagRunner: an
execution for every node, in the run's context, with its inputs and outputs; outputs in
`<root>/<node>/<key>/<execution id>`; a cached node repeats the outputs of the earlier execution.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_metadata
from ml_metadata.proto import metadata_store_pb2

from components.pusher.pushed_models import MODEL_ID, rolled_back, sound_models
from components.pusher.versions import has_same_files, push_version
from pipeline.runs.history import RunHistory, RunRecord
from pipeline.runs.metadata_store import parse_url
from pipeline.runs.workspace import Workspace
from serving.saved_model.versions import versions

_Artifact = metadata_store_pb2.Artifact
_Event = metadata_store_pb2.Event
_Execution = metadata_store_pb2.Execution
# Outputs of each node by key, with their types.
OUTPUTS = {
    "PairExampleGen": {"examples": "Examples"},
    "StatisticsGen": {"statistics": "ExampleStatistics"},
    "Trainer": {"model": "Model", "model_run": "ModelRun"},
    "Evaluator": {"blessing": "ModelBlessing", "evaluation": "ModelEvaluation"},
    "ServingGate": {"blessing": "InfraBlessing"},
    "Pusher": {"pushed_model": "PushedModel"},
}


@dataclass
class RecordedRun:
    """What a run came to."""

    run_id: str
    model: int
    baseline: int | None
    version: int | None
    cached: set[str] = field(default_factory=set)


class RecordedRuns:
    """Makes runs in an output folder.

    Attributes:
      workspace: the folder.
      store: its ML Metadata.
    """

    def __init__(
        self,
        root: Path,
        *,
        clock: Callable[[], float],
        connection: metadata_store_pb2.ConnectionConfig | None = None,
    ) -> None:
        """
        Args:
          root: the output folder.
          clock: seconds since 1970.
          connection: ML Metadata, in the folder's own SQLite file unless given.
        """
        self.workspace = Workspace(root)
        root.mkdir(parents=True, exist_ok=True)
        if connection is None:
            connection = parse_url(f"sqlite:///{self.workspace.metadata_db}").connection()
        self.history = RunHistory(connection)
        self.store = ml_metadata.MetadataStore(connection)
        self._clock = clock
        self._count = len(self.history.runs())
        self._cache: dict[tuple[object, ...], list[int]] = {}
        self._types: dict[str, int] = {}

    def run(self, *, data: int, training: int = 0, blessed: bool = True) -> RecordedRun:
        """A run on the `data`-th data with the `training`-th settings, and all its files."""
        self._count += 1
        run_id = f"run-{self._count:05d}"
        record = RunRecord(run_id=run_id, state="done", started=self._clock(), dataset="omniglot")
        self.history.record(record)
        context = self.store.get_context_by_type_and_name("pipeline_run", run_id)
        run = RecordedRun(run_id, 0, None, None)

        def node(
            name: str,
            inputs: list[_Artifact],
            settings: object = 0,
            **properties: Mapping[str, object],
        ) -> list[_Artifact]:
            return self._node(context, run, name, inputs, settings, properties)

        examples = node("PairExampleGen", [], data)[0]
        node("StatisticsGen", [examples])
        model = node("Trainer", [examples], training)[0]
        earlier = [
            sound
            for sound in sound_models(self._live("Model"), self._live("PushedModel"))
            if sound.id < model.id
        ]
        blessing, _ = node(
            "Evaluator",
            [examples, model, *earlier[-1:]],
            blessed,
            blessing={"blessed": int(blessed), "current_model_id": model.id},
        )
        infra = node("ServingGate", [model], blessing={"blessed": 1})[0]
        (pushed,) = node("Pusher", [model, blessing, infra])
        version = pushed.custom_properties["pushed_version"].string_value
        run.model, run.version = model.id, int(version) if version else None
        run.baseline = earlier[-1].id if earlier else None
        folder = self.workspace.run_dir(run_id)
        folder.mkdir(parents=True)
        for name in ("summary.json", "report.html", "run.log"):
            (folder / name).write_text(run_id)
        self.workspace.point_latest_at(run_id)
        self.history.record(
            RunRecord(**{**vars(record), "pushed_version": run.version, "blessed": blessed})
        )
        return run

    def _node(
        self,
        context: metadata_store_pb2.Context,
        run: RecordedRun,
        name: str,
        inputs: list[_Artifact],
        settings: object,
        properties: Mapping[str, Mapping[str, object]],
    ) -> list[_Artifact]:
        # As TFX's cache key, with all that is known of the inputs.
        key = (
            name,
            settings,
            *(artifact.SerializeToString(deterministic=True) for artifact in inputs),
        )
        known = self.store.get_artifacts_by_id(self._cache.get(key, []))
        if known and all(a.state == _Artifact.LIVE and Path(a.uri).exists() for a in known):
            run.cached.add(name)
            self._execution(name, context, inputs, known, _Execution.CACHED)
            return known
        execution = self._execution(name, context, inputs, [], _Execution.RUNNING)
        outputs = []
        for output, kind in OUTPUTS[name].items():
            uri = self.workspace.artifacts / name / output / str(execution)
            uri.mkdir(parents=True)
            (uri / "content").write_text(f"{key[:2]}")
            artifact = _Artifact(
                type_id=self._type("artifact", kind), uri=str(uri), state=_Artifact.LIVE
            )
            for property_, value in properties.get(output, {}).items():
                artifact.custom_properties[property_].int_value = value
            outputs.append(artifact)
        system = self.workspace.artifacts / name / ".system" / "executor_execution" / str(execution)
        system.mkdir(parents=True)
        if name == "Trainer":
            (Path(outputs[0].uri) / "saved_model.pb").write_text(f"model of execution {execution}")
        if name == "Pusher":
            self._push(inputs, outputs[0])
        ids = [artifact.id for artifact in self._publish(execution, outputs)]
        self._cache[key] = ids
        return list(self.store.get_artifacts_by_id(ids))

    def _push(self, inputs: list[_Artifact], pushed: _Artifact) -> None:
        model, *blessings = inputs
        blessed = all(a.custom_properties["blessed"].int_value for a in blessings)
        may = blessed and not rolled_back(model)
        pushed.custom_properties["pushed"].int_value = int(may)
        if may:
            target = self._version(Path(model.uri))
            pushed.custom_properties["pushed_version"].string_value = target.name
            pushed.custom_properties["pushed_destination"].string_value = str(target)
            pushed.custom_properties[MODEL_ID].int_value = model.id

    def _version(self, model: Path) -> Path:
        """The newest version if it is this very model, else a new one."""
        base = self.workspace.serving_model
        for newest in versions(base)[-1:]:
            if has_same_files(model, base / str(newest)):
                return base / str(newest)
        return push_version(model, base, now=self._clock)

    def _publish(self, execution: int, outputs: list[_Artifact]) -> list[_Artifact]:
        (stored,) = self.store.get_executions_by_id([execution])
        stored.last_known_state = _Execution.COMPLETE
        pairs = [(artifact, _Event(type=_Event.OUTPUT)) for artifact in outputs]
        _, ids, _ = self.store.put_execution(stored, pairs, [])
        return list(self.store.get_artifacts_by_id(ids))

    def _execution(
        self,
        name: str,
        context: metadata_store_pb2.Context,
        inputs: list[_Artifact],
        outputs: list[_Artifact],
        state: int,
    ) -> int:
        execution = _Execution(type_id=self._type("execution", name), last_known_state=state)
        pairs = [(a, _Event(artifact_id=a.id, type=_Event.INPUT)) for a in inputs]
        pairs += [(a, _Event(artifact_id=a.id, type=_Event.OUTPUT)) for a in outputs]
        number, _, _ = self.store.put_execution(
            execution, pairs, [context, self._node_context(name)]
        )
        return int(number)

    def _node_context(self, name: str) -> metadata_store_pb2.Context:
        """As TFX has one for every node, named after pipeline and node."""
        context = self.store.get_context_by_type_and_name("node", f"oneshot.{name}")
        if context is None:
            kind = self.store.put_context_type(metadata_store_pb2.ContextType(name="node"))
            context = metadata_store_pb2.Context(type_id=kind, name=f"oneshot.{name}")
            self.store.put_contexts([context])
            context = self.store.get_context_by_type_and_name("node", f"oneshot.{name}")
        return context

    def _live(self, kind: str) -> list[_Artifact]:
        return [a for a in self.store.get_artifacts_by_type(kind) if a.state == _Artifact.LIVE]

    def _type(self, what: str, name: str) -> int:
        if name not in self._types:
            if what == "artifact":
                made = self.store.put_artifact_type(metadata_store_pb2.ArtifactType(name=name))
            else:
                made = self.store.put_execution_type(metadata_store_pb2.ExecutionType(name=name))
            self._types[name] = made
        return self._types[name]


def files_of(folder: Path) -> set[str]:
    """All files below a folder, relative to it; empty where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return set()
