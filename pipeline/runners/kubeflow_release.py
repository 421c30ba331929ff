"""Last steps of a run in Kubeflow Pipelines and Vertex AI: the label and the report.

Where a process of this project runs the graph, it does both itself.
"""

import logging
import shutil
import tempfile
from pathlib import Path

from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2
from tfx import types
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.experimental.simple_artifacts import File
from tfx.types.standard_artifacts import (
    Examples,
    InfraBlessing,
    Model,
    ModelBlessing,
    ModelEvaluation,
    ModelRun,
    PushedModel,
)

from components.evaluator.evidence import evidence
from components.evaluator.settings import EvaluateSettings
from components.pusher.pushed_models import is_pushed, pushed_version
from data_ingest.sources.dataset import Dataset
from pipeline.releases.promotion import Promotions
from pipeline.reports.report import write_report
from pipeline.runners.kubeflow_parameters import protocols_in, sampled
from pipeline.runs.history import NodeRun
from pipeline.runs.metadata_store import locate
from pipeline.runs.summarize import summarize
from pipeline.runs.workspace import Workspace
from pipeline.settings import MetadataSettings, PushSettings

DATA = "data"
"""Custom property of the Examples artifact: where the images were."""
SECONDS = "seconds"
"""Custom property of every artifact: what the step that made it took."""
_log = logging.getLogger(__name__)


@component
def Promote(  # noqa: N802
    pushed_model: InputArtifact[PushedModel],
    output: Parameter[str],
    push: Parameter[str],
    label: Parameter[str],
    run_id: Parameter[str],
) -> None:
    """Gives the version that was pushed a label, as `oneshot promote` does; if none was, nothing.

    Args:
      pushed_model: of the Pusher.
      output: folder with `serving_model/` and, unless ONESHOT_METADATA_URL names another store,
        the `metadata.db` that has the history of labels.
      push: PushSettings as JSON.
      label: `stable`, `canary`, or empty: servers are to load the version, and no more.
      run_id: for the history.
    """
    pushed = _recorded(pushed_model)
    if not is_pushed(pushed):
        _log.warning("Not promoted: no model was pushed")
        return
    settings = PushSettings.model_validate_json(push)
    workspace = Workspace(Path(output), settings.model_name)
    store = MetadataStore(locate(MetadataSettings(), workspace).connection())
    promotions = Promotions(workspace, store, settings=settings)
    with promotions.followed():
        if label:
            version = pushed_version(pushed)
            change = promotions.promote(version, label, why=f"Kubeflow run {run_id}")
            _log.info("%s", change or f"Version {version} is {label} already")


@component
def Report(  # noqa: N802
    report: OutputArtifact[File],
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    model_run: InputArtifact[ModelRun],
    evaluation: InputArtifact[ModelEvaluation],
    blessing: InputArtifact[ModelBlessing],
    infra_blessing: InputArtifact[InfraBlessing],
    pushed_model: InputArtifact[PushedModel],
    evaluate: Parameter[str],
    run_id: Parameter[str],
) -> None:
    """Writes the report of the run, one HTML file.

    Args:
      report: is that file.
      examples, model, model_run, evaluation, blessing, infra_blessing, pushed_model: of the run.
      evaluate: EvaluateSettings as JSON.
      run_id: for its title.
    """
    nodes = [
        _node("PairExampleGen", examples=examples),
        _node("Trainer", model=model, model_run=model_run),
        _node("Evaluator", evaluation=evaluation, blessing=blessing),
        _node("ServingGate", blessing=infra_blessing),
        _node("Pusher", pushed_model=pushed_model),
    ]
    sampling = sampled(examples.uri)
    settings = EvaluateSettings.model_validate_json(evaluate)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        summarize(
            nodes=nodes,
            run_id=run_id,
            dataset=Dataset(
                sampling["dataset"], Path(), {}, examples.get_string_custom_property(DATA)
            ),
            workspace=workspace,
            seconds=sum(node.seconds for node in nodes),
            asked=evidence(settings, protocols_in(sampling)),
        )
        written = write_report(workspace, run_id, alone=True)
        Path(report.uri).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(written, report.uri)


def _node(node_id: str, **outputs: types.Artifact) -> NodeRun:
    seconds = max(artifact.get_float_custom_property(SECONDS) for artifact in outputs.values())
    found = {key: _recorded(artifact) for key, artifact in outputs.items()}
    return NodeRun(node_id, cached=False, seconds=seconds, outputs=found)


def _recorded(artifact: types.Artifact) -> metadata_store_pb2.Artifact:
    """As the ML Metadata of a local run has it; Kubeflow keeps properties as JSON."""
    plain = metadata_store_pb2.Artifact(uri=artifact.uri)
    for name in artifact.mlmd_artifact.custom_properties:
        value = artifact.get_json_value_custom_property(name)
        if isinstance(value, str):
            plain.custom_properties[name].string_value = value
        elif isinstance(value, float) and value.is_integer():
            plain.custom_properties[name].int_value = int(value)
    return plain
