"""An output folder with two judged runs, as their reports need it; nothing is trained."""

import io
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorflow_metadata.proto.v0.anomalies_pb2 import Anomalies
from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatisticsList

from components.evaluator import examination
from components.evaluator.embedding_map import EmbeddingMap
from data_ingest.sampling.protocols import SPLITS
from pipeline.runs.summary import SUMMARY_FILE, RunSummary
from tests.pair_records import drawing, make_pairs, png, trial_records, write_records
from tests.pipeline.recorded_runs import RecordedRuns
from tests.pixel_model import PixelModel

FIGURE = "within_5way_accuracy"
METRICS: dict[str, Any] = {
    FIGURE: 0.9,
    f"{FIGURE}_ci95": [0.85, 0.95],
    f"{FIGURE}_n": 400,
    "between_5way_accuracy": 0.95,
    "between_5way_accuracy_ci95": [0.9, 0.99],
    "verification_accuracy": 0.92,
    "auc": 0.98,
    "auc_ci95": [0.97, 0.99],
    "auc_n": 4000,
    "eer": 0.06,
    "ece": 0.04,
    "tar_at_1pct_far": 0.75,
}
SUMMARY = RunSummary(
    run_id="",
    dataset="synthetic",
    blessed=True,
    pushed_version=None,
    model_dir=None,
    metrics=METRICS,
    seconds={"PairExampleGen": 3.0, "Trainer": 42.0, "Evaluator": 12.5, "total": 60.0},
    train_images_per_second=512.0,
    device="2 CPU cores",
    versions={"tfx": "1.21.0"},
    data_found="generated glyphs",
    baselines={FIGURE: {"pixel_1nn": 0.41, "hog": 0.62}},
    per_group={FIGURE: {"Old_Greek": {"value": 0.8, "ci95": [0.7, 0.9], "n": 20}}},
    thresholds={FIGURE: {"min": 0.5, "max_drop": 0.03}, "auc": {"min": 0.75}},
    images={
        "read": {"images": 1200},
        "duplicates": {"images": 1},
        "rejected": {"cannot be read": 2},
        "copies": [["/d/a/copy.png", "/d/a/1.png"]],
        "in_two_classes": [["/d/a/2.png", "/d/b/2.png"]],
    },
    config={"train": {"preset": "fast", "seed": 1}},
)


def reported_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RecordedRuns, str, str]:
    """Two runs, the second of which is worse than the first, with their summaries.

    Args:
      root: the output folder.
      monkeypatch: has a model of pixels take the place of a trained one.

    Returns:
      the runs, and the ids of the first and of the second.
    """
    monkeypatch.setattr(examination, "LoadedModel", PixelModel)
    # The map has tests of its own, and takes seconds.
    drawn = EmbeddingMap(_webp(), classes=2, images=24)
    monkeypatch.setattr(examination, "draw_map", lambda *_: drawn)
    runs = RecordedRuns(root, clock=time.time)
    first, second = runs.run(data=1), runs.run(data=1, training=1, blessed=False)
    artifacts = _artifacts(root / "made")
    worse = METRICS | {FIGURE: 0.85}
    _write(runs, first.run_id, artifacts, pushed_version=first.version)
    _write(
        runs,
        second.run_id,
        artifacts,
        blessed=False,
        metrics=worse,
        before=METRICS,
        cached=["PairExampleGen"],
        run_seconds=55.0,
        refusals=[f"{FIGURE} is 0.0500 worse than the latest blessed model's; 0.03 is allowed"],
        config={"train": {"preset": "fast", "seed": 2}},
    )
    return runs, first.run_id, second.run_id


def _webp() -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", (60, 40), "teal").save(stream, "webp")
    return stream.getvalue()


def _write(runs: RecordedRuns, run_id: str, artifacts: dict[str, str], **fields: Any) -> None:
    summary = replace(SUMMARY, run_id=run_id, artifacts=artifacts, **fields)
    file = runs.workspace.run_dir(run_id) / SUMMARY_FILE
    file.write_text(json.dumps(asdict(summary)))
    (record,) = (one for one in runs.history.runs() if one.run_id == run_id)
    runs.history.record(
        replace(
            record,
            dataset="synthetic",
            accuracy=summary.metrics[FIGURE],
            accuracy_metric=FIGURE,
            seconds=60.0,
        )
    )


def _artifacts(folder: Path) -> dict[str, str]:
    """Of the kinds that reports read, as small as can be."""
    pairs = [
        pair._replace(protocol="verification")
        for pair in make_pairs(groups=2, classes=5, pairs=200)
    ]
    trials = [
        pair
        for number in range(8)
        for pair in trial_records(
            f"within/{number}",
            [png(drawing(number + other, 1)) for other in range(5)],
            query=png(drawing(number, 2)),
            # In the last two the nearest is not the right one.
            answer=int(number > 5),
        )
    ]
    examples = folder / "examples"
    write_records(examples / "Split-one_shot", [*pairs, *trials])
    split = {"groups": ["g"], "classes": 5, "images": 60, "pairs": [{"pairs": 240}]}
    (examples / "sampling.json").write_text(json.dumps({"splits": dict.fromkeys(SPLITS, split)}))
    rejected = {"source": "images", "file": "/d/a/broken.png", "reason": "cannot be read"}
    (examples / "rejected.jsonl").write_text(json.dumps(rejected) + "\n")
    statistics = DatasetFeatureStatisticsList()
    label = statistics.datasets.add().features.add()
    label.path.step.append("label")
    label.num_stats.max = 1
    label.num_stats.mean = 0.5
    anomalies = Anomalies()
    anomalies.anomaly_info["way"].description = "Values out of range"
    for name in SPLITS:
        for kind, file, content in (
            ("statistics", "FeatureStats.pb", statistics),
            ("anomalies", "SchemaDiff.pb", anomalies),
        ):
            target = folder / kind / f"Split-{name}" / file
            target.parent.mkdir(parents=True)
            target.write_bytes(content.SerializeToString())
    (folder / "model" / "Format-Serving").mkdir(parents=True)
    (folder / "model_run").mkdir()
    history = [{"step": 50 * n, "loss": 1 / n, "accuracy": 1 - 0.5 / n} for n in (1, 2, 3)]
    training = {"history": history, "validation_classes": 100, "refit": {"steps": 1200}}
    (folder / "model_run" / "training.json").write_text(json.dumps(training))
    (folder / "model_run" / "contact_sheet.png").write_bytes(png(drawing(1, 1)))
    names = ("examples", "statistics", "anomalies", "model", "model_run")
    return {name: str(folder / name) for name in names}
