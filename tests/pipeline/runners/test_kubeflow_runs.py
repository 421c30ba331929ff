"""Runs of the pipeline compiled for Kubeflow: the second builds on the first."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from data_ingest.sources.glyphs import write_glyphs
from serving.deploy.models_config import read_entry
from serving.saved_model.loader import LoadedModel
from tests.pipeline.runners.kubeflow_cluster import Cluster, documents
from tests.pipeline.runners.kubeflow_launcher import ROOT, Launcher


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    return Launcher(tmp_path_factory.mktemp("kubeflow"))


@pytest.fixture(scope="module")
def spec(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("compiled") / "oneshot.yaml"
    assert cluster.compile(out) == 0
    return documents(out)[0]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Running a step sets the loggers of a container up."""
    levels = {name: logging.getLogger(name).level for name in ("absl", "")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def labels(cluster: Cluster) -> dict[str, int]:
    entry = read_entry((cluster.output / "serving_model" / "models.config").read_text(), "siamese")
    assert entry is not None
    return dict(entry.labels)


def card_of(made: dict[str, Any], launcher: Launcher) -> Any:
    model = launcher.local(made["Trainer"]["model"]["uri"])
    return json.loads((model / "Format-Serving/assets.extra/model_card.json").read_text())


def test_the_compiled_pipeline_runs_from_images_to_a_promoted_model_and_a_report(
    spec: dict[str, Any], cluster: Cluster, launcher: Launcher
) -> None:
    made = launcher.run(spec, "run-1")
    assert made["ServedModel"]["model"]["metadata"]["absent"] == 1
    assert made["PairExampleGen"]["examples"]["metadata"]["input_fingerprint"]
    blessing = made["Evaluator"]["blessing"]["metadata"]
    assert blessing["blessed"] == 1
    assert blessing["current_model"] == f"{ROOT}/run-1/Trainer/model"
    assert "baseline_model" not in blessing
    (version,) = (cluster.output / "serving_model" / "siamese").iterdir()
    pushed = made["Pusher"]["pushed_model"]["metadata"]
    assert pushed["pushed_destination"] == str(version)
    with LoadedModel(version) as model:
        assert {"serving_default", "embed", "match", "examples"} <= set(model.signatures)
    assert list((cluster.output / "checkpoints").iterdir()) == []
    training = card_of(made, launcher)["training"]
    assert (training["steps"], training["warm_start_from"]) == (6, None)
    assert labels(cluster) == {"stable": int(version.name)}
    report = made["Report"]["report"]
    assert report["type"]["schemaTitle"] == "system.HTML"
    text = launcher.local(report["uri"]).read_text()
    assert f"It was pushed as version {version.name}." in text
    assert "All runs" not in text
    assert f"images in {cluster.images}" in text
    assert "Run run-1, " in text
    assert f"Total {sum(step_seconds(made)):.0f} s" in text


def step_seconds(made: dict[str, Any]) -> Iterator[float]:
    for name in ("PairExampleGen", "Trainer", "Evaluator", "ServingGate", "Pusher"):
        (seconds, *_) = [output["metadata"]["seconds"] for output in made[name].values()]
        yield seconds


def test_parameters_of_the_next_run_change_what_is_trained_and_what_it_must_reach(
    spec: dict[str, Any], cluster: Cluster, launcher: Launcher
) -> None:
    served = list((cluster.output / "serving_model" / "siamese").iterdir())
    others = cluster.volume / "others.zip"
    write_glyphs(others, alphabets=8, characters=6, seed=9, writers=4)
    made = launcher.run(
        spec,
        "run-2",
        data=str(others),
        steps=7,
        seed=2,
        warm_start=True,
        thresholds={"within_5way_accuracy": {"min": 0.999}, "auc": {"min": 0.05, "max_drop": 0.9}},
    )
    assert made["PairExampleGen"]["examples"]["metadata"]["data"] == f"images in {others}"
    card = card_of(made, launcher)
    assert (card["training"]["steps"], card["recipe"]["seed"]) == (7, 2)
    assert "ServedModel" in card["training"]["warm_start_from"]
    blessing = made["Evaluator"]["blessing"]["metadata"]
    assert blessing["baseline_model"] == f"{ROOT}/run-2/ServedModel/model"
    assert blessing["blessed"] == 0
    assert made["Pusher"]["pushed_model"]["metadata"]["pushed"] == 0
    assert list((cluster.output / "serving_model" / "siamese").iterdir()) == served
    assert labels(cluster) == {"stable": int(served[0].name)}
    text = launcher.local(made["Report"]["report"]["uri"]).read_text()
    assert "5 candidates of one group" in text
    assert "is below 99.9 %" in text
