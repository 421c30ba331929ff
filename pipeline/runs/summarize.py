"""Gathers `summary.json` of a run from what its nodes have put out."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata as package_metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from components.evaluator.baselines import pixel_nearest_neighbour_accuracy
from components.evaluator.comparison import COMPARISON_FILE
from components.evaluator.eval_config import lacking, read_metrics, refusals
from components.evaluator.evidence import Evidence, lack_of_evidence
from components.pusher.pushed_models import (
    NOT_PUSHED_BECAUSE,
    custom_text,
    is_pushed,
    pushed_version,
)
from components.serving_gate.component import REPORT as GATE_REPORT
from data_ingest.durable import write_atomically
from data_ingest.records.catalog import REJECTED_FILE, told_reasons
from data_ingest.records.catalog import SUMMARY_FILE as SAMPLING_FILE
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT
from data_ingest.sources.dataset import Dataset
from pipeline.runs.history import NodeRun
from pipeline.runs.summary import (
    EXAMINATION_FILE,
    SUMMARY_FILE,
    RunSummary,
    accuracy_names,
    by_baseline,
    read_json,
    read_summary,
)
from pipeline.runs.workspace import Workspace

_FEW_CLASSES = 10
PACKAGES = (
    "tensorflow",
    "keras",
    "tfx",
    "apache-beam",
    "tensorflow-data-validation",
    "tensorflow-model-analysis",
    "ml-metadata",
)


def summarize(
    *,
    nodes: Sequence[NodeRun],
    run_id: str,
    dataset: Dataset,
    workspace: Workspace,
    seconds: float,
    asked: Evidence,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> RunSummary:
    """Gathers the figures of a finished run from its nodes and writes `summary.json`.

    Args:
      nodes: those that have run, with their outputs.
      run_id: of this one.
      dataset: what it ran on.
      workspace: where everything is.
      seconds: what it took.
      asked: what its model was judged by, as far as the names of the images told.
      config: sections of the configuration, as JSON values.
    """
    outputs = {(n.node_id, key): artifact for n in nodes for key, artifact in n.outputs.items()}
    artifacts = {
        key: artifact.uri
        for (node_id, key), artifact in outputs.items()
        if key != "blessing" and not node_id.endswith("Resolver")
    }
    blessings = [outputs.get((node_id, "blessing")) for node_id in ("Evaluator", "ServingGate")]
    both = all(b is not None and b.custom_properties["blessed"].int_value == 1 for b in blessings)
    pushed = outputs.get(("Pusher", "pushed_model"))
    taken_back = "" if pushed is None else custom_text(pushed, NOT_PUSHED_BECAUSE)
    gate = {} if blessings[1] is None else read_json(Path(blessings[1].uri) / GATE_REPORT)
    training = read_json(Path(artifacts.get("model_run", "")) / "training.json")
    version = pushed_version(pushed) if pushed is not None and is_pushed(pushed) else None
    cached = [node.node_id for node in nodes if node.cached]
    earlier = _same_evaluation(workspace, artifacts) if "Evaluator" in cached else None
    if earlier is None:
        metrics = read_metrics(artifacts["evaluation"])
        per_group = metrics.pop("per_group")
        before = read_metrics(artifacts["evaluation"], baseline=True)
        del before["per_group"]
    else:
        metrics, per_group, before = earlier.metrics, earlier.per_group, earlier.before
        examination = workspace.run_dir(earlier.run_id) / EXAMINATION_FILE
        if examination.is_file():
            write_atomically(workspace.run_dir(run_id) / EXAMINATION_FILE, examination.read_bytes())
    sampling = read_json(Path(artifacts["examples"]) / SAMPLING_FILE)
    images = sampling.get("images", {})
    comparison = read_json(Path(artifacts["evaluation"]) / COMPARISON_FILE)
    without_trials = lacking(artifacts["evaluation"], asked.thresholds)
    summary = RunSummary(
        run_id=run_id,
        dataset=dataset.source,
        blessed=both and not taken_back,
        pushed_version=version,
        model_dir=str(workspace.serving_model / str(version)) if version else None,
        metrics=metrics,
        seconds={n.node_id: round(n.seconds, 2) for n in nodes}
        | {"total": round(seconds + sum(n.seconds for n in nodes if n.cached), 2)},
        run_seconds=round(seconds, 2),
        train_images_per_second=training.get("images_per_second"),
        device=training.get("device"),
        versions={name: package_metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        data_found=dataset.description,
        cached=cached,
        baselines=by_baseline(
            comparison.get("figures") or _pixel_baseline(artifacts["examples"], workspace)
        ),
        refusals=[
            *(
                [lack_of_evidence(without_trials, accuracy_names(metrics))]
                if without_trials
                else []
            ),
            *refusals(artifacts["evaluation"]),
            *comparison.get("refusals", []),
            *gate.get("reasons", []),
            *([taken_back] if taken_back else []),
        ],
        artifacts=artifacts,
        per_group=per_group,
        thresholds={
            name: threshold.model_dump(exclude_none=True)
            for name, threshold in asked.thresholds.items()
        },
        notes=[
            *asked.notes,
            *_few_classes(sampling),
            *_left_out(images, artifacts["examples"]),
            *training.get("remarks", []),
        ],
        lacking=without_trials,
        images=images,
        before=before,
        config=dict(config),
    )
    write_atomically(
        workspace.run_dir(run_id) / SUMMARY_FILE,
        json.dumps(asdict(summary), indent=2) + "\n",
    )
    return summary


def _same_evaluation(workspace: Workspace, artifacts: dict[str, str]) -> RunSummary | None:
    """The summary of the newest run whose model was judged by the same execution."""
    for file in sorted(workspace.runs.glob(f"[0-9]*/{SUMMARY_FILE}"), reverse=True):
        summary = read_summary(file.parent)
        if summary.artifacts.get("evaluation") == artifacts["evaluation"]:
            return summary
    return None


def _few_classes(sampling: Mapping[str, Any]) -> list[str]:
    """Warns of figures that rest on little, since an interval over trials does not."""
    kept = sampling.get("splits", {}).get(ONE_SHOT_SPLIT, {})
    classes, images = kept.get("classes", _FEW_CLASSES), kept.get("images")
    if classes >= _FEW_CLASSES:
        return []
    return [f"Few classes: all figures are of {classes} classes with {images} images"]


def _left_out(images: Mapping[str, Any], examples_uri: str) -> list[str]:
    """Says which images were left out, if any; ExampleGen does so, too, unless it is cached."""
    counts = images.get("rejected")
    listed = Path(examples_uri) / REJECTED_FILE
    return [f"Images left out: {told_reasons(counts)}; listed in {listed}"] if counts else []


def _pixel_baseline(examples_uri: str, workspace: Workspace) -> dict[str, Any]:
    """Pixel nearest neighbour on the same trials, computed once an Examples artifact."""
    cache = workspace.root / "baselines" / f"{Path(examples_uri).name}.json"
    known = read_json(cache)
    if not known:
        known = pixel_nearest_neighbour_accuracy(Path(examples_uri))
        write_atomically(cache, json.dumps(known) + "\n")
    return known
