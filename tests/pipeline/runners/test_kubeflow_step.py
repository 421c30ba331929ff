"""One node as a container of Kubeflow Pipelines runs it."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from tensorflow_model_analysis.proto import config_pb2
from tfx.proto import example_gen_pb2
from tfx.utils import proto_utils

from components.example_gen import make_input_config
from data_ingest.errors import InputError
from data_ingest.settings import PairSettings
from data_ingest.sources.glyphs import write_glyphs
from data_ingest.spans.store import SpanStore
from pipeline.runners.cluster import window_up_to
from pipeline.runners.kubeflow_parameters import configured
from pipeline.runners.kubeflow_step import (
    apply_options,
    find_span,
    main,
    runs_elsewhere,
    take_dataset,
)
from serving.deploy.models_config import ModelEntry, read_entry


def invocation(base: Path, **inputs: str) -> Any:
    """ExecutorInput of a PairExampleGen."""
    config = proto_utils.proto_to_json(make_input_config(inputs))
    return json_format.ParseDict(
        {
            "inputs": {"parameterValues": {"input_base": str(base), "input_config": config}},
            "outputs": {"artifacts": {"examples": {"artifacts": [{"uri": "gs://bucket/x"}]}}},
        },
        pipeline_spec_pb2.ExecutorInput(),
    )


def patterns(changed: Any) -> dict[str, str]:
    config = example_gen_pb2.Input()
    text = changed.inputs.parameter_values["input_config"].string_value
    proto_utils.json_to_proto(text, config)
    return {split.name: split.pattern for split in config.splits}


def metadata(changed: Any) -> dict[str, Any]:
    (examples,) = changed.outputs.artifacts["examples"].artifacts
    return json_format.MessageToDict(examples.metadata)


@pytest.fixture
def spans(tmp_path: Path) -> Path:
    """Three spans as zips, in a folder."""
    for number in (1, 2, 10):
        name = f"span-{number}.zip"
        write_glyphs(tmp_path / name, alphabets=4, characters=3, seed=number, writers=2)
    return tmp_path


def test_the_newest_span_is_taken_and_noted_with_its_fingerprint(spans: Path) -> None:
    changed = invocation(spans, images="span-{SPAN}.zip")
    find_span(changed)
    assert patterns(changed) == {"images": "span-10.zip"}
    assert metadata(changed)["span"] == 10
    same = invocation(spans, images="span-10.zip")
    find_span(same)
    assert metadata(same)["input_fingerprint"] == metadata(changed)["input_fingerprint"]
    other = invocation(spans, images="span-2.zip")
    find_span(other)
    assert metadata(other)["input_fingerprint"] != metadata(changed)["input_fingerprint"]


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        find_span(invocation(tmp_path, images="nowhere.zip"))


def test_the_window_of_spans_is_found_when_the_step_runs(spans: Path, tmp_path: Path) -> None:
    store = SpanStore(tmp_path / "store")
    for number in (1, 2):
        source = spans / f"span-{number}.zip"
        store.land(number, [source], pairs=PairSettings(ways=(3,)), max_rejected_share=0.0)
    for last, number in (("newest", 2), ("1", 1)):
        changed = invocation(tmp_path, images="unused")
        take_dataset(changed, window_up_to(store.root, 1, last))
        window = store.window(number, 1)
        base = changed.inputs.parameter_values["input_base"].string_value
        assert (base, patterns(changed)) == (str(window.base), window.inputs)
    for last, message in (("3", "no span 3"), ("two", "newest or a number")):
        with pytest.raises(InputError, match=message):
            window_up_to(store.root, 1, last)
    with pytest.raises(InputError, match="oneshot ingest"):
        window_up_to(tmp_path / "empty", 1)


def test_thresholds_of_a_run_are_held_against_the_trials_that_its_examples_have(
    tmp_path: Path,
) -> None:
    pairs = [{"protocol": "within", "way": 5, "label": 1, "pairs": 20}]
    (tmp_path / "sampling.json").write_text(json.dumps({"splits": {"one_shot": {"pairs": pairs}}}))
    evaluator = json_format.ParseDict(
        {
            "inputs": {
                "parameterValues": {"eval_config": "compiled"},
                "artifacts": {"examples": {"artifacts": [{"uri": str(tmp_path)}]}},
            }
        },
        pipeline_spec_pb2.ExecutorInput(),
    )
    default = {"within_20way_accuracy": {"min": 0.55, "max_drop": 0.03}, "auc": {"min": 0.9}}
    apply_options(evaluator, {"thresholds": default}, evaluates=True)
    text = evaluator.inputs.parameter_values["eval_config"].string_value
    config = proto_utils.json_to_proto(text, config_pb2.EvalConfig())
    gates = {
        metric.class_name: gate
        for specification in config.metrics_specs
        for metric in specification.metrics
        for gate in metric.per_slice_thresholds
    }
    trials = dict(gates["OneShotAccuracy"].slicing_specs[0].feature_values)
    assert trials == {"protocol": "within", "way": "5"}
    assert gates["VerificationMetric"].threshold.value_threshold.lower_bound.value == 0.9


def step(executor: str, request: dict[str, object], *further: str) -> int:
    """Runs one node; its exit code."""
    return main(
        [
            f"--executor_class_path={executor}",
            f"--json_serialized_invocation_args={json.dumps(request)}",
            "--json_serialized_inputs_spec_args={}",
            *further,
        ]
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": -1}, "train.steps: Input should be greater than or equal to 1 (got -1"),
        ({"preset": "quick"}, "train.preset"),
        ({"thresholds": {"auk": {"min": 0.5}}}, "evaluate.thresholds: 'auk' is no figure"),
        ({"thresholds": {"auc": {"min": 2}}}, "evaluate.thresholds.auc.min"),
        ({"label": "best"}, "retrain.label"),
        ({"preset": "koch2015"}, "image_size"),
    ],
)
def test_a_wrong_parameter_ends_the_run_at_once_with_its_options_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, parameters: dict[str, object], message: str
) -> None:
    request = {
        "inputs": {"parameterValues": {"base_path": str(tmp_path), **parameters}},
        "outputs": {"outputFile": str(tmp_path / "output.json")},
    }
    compiled = ('--checked_train={"image_size": 28}', "--checked_kind=drawing")
    served = "components.pusher.earlier_models.ServedModel_Executor"
    assert step(served, request, *compiled) == 2
    assert message in caplog.text
    assert not (tmp_path / "output.json").exists()


def test_nought_steps_are_the_presets_and_no_label_is_none() -> None:
    assert configured({"steps": 0, "label": ""}, {"train": {"steps": 6}}).train.steps is None
    assert configured({"label": ""}).retrain.label is None


def test_images_given_to_a_run_that_are_not_there_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = json_format.MessageToDict(invocation(tmp_path, images="unused"))
    request["inputs"]["parameterValues"]["data"] = "gs://bucket/faces"
    request["outputs"]["outputFile"] = str(tmp_path / "output.json")
    assert step("components.example_gen.Executor", request) == 2
    assert "/gcs/bucket/faces does not exist" in caplog.text


@pytest.mark.parametrize(
    ("args", "elsewhere"),
    [
        (["--runner=FnApiRunner"], False),
        (["--runner=PortableRunner"], True),
        (["--runner=DataflowRunner"], True),
        ([], False),
    ],
)
def test_workers_are_elsewhere_unless_the_runner_is_of_this_machine(
    args: list[str], elsewhere: bool
) -> None:
    assert runs_elsewhere(args) is elsewhere


def test_images_at_fault_end_the_step_with_2_and_leave_no_result(tmp_path: Path) -> None:
    request = json_format.MessageToDict(invocation(tmp_path, images="nowhere.zip"))
    request["outputs"]["outputFile"] = str(tmp_path / "output.json")
    assert step("components.example_gen.Executor", request) == 2
    assert not (tmp_path / "output.json").exists()


def promote(output: Path, pushed: dict[str, object], label: str) -> ModelEntry:
    """Runs the step Promote; what servers are told then."""
    artifact = {
        "uri": str(output / "pushed"),
        "type": {"schemaTitle": "tfx.PushedModel"},
        "metadata": pushed,
    }
    values = {"output": str(output), "push": '{"server_poll_seconds": 0}', "run_id": "1"}
    request = {
        "inputs": {
            "parameterValues": {**values, "label": label},
            "artifacts": {"pushed_model": {"artifacts": [artifact]}},
        },
        "outputs": {"outputFile": str(output / "outputs" / "output.json")},
    }
    assert step("pipeline.runners.kubeflow_release.Promote_Executor", request) == 0
    config = output / "serving_model" / "models.config"
    entry = read_entry(config.read_text(), "siamese") if config.exists() else None
    return entry or ModelEntry()


def test_the_label_goes_to_what_was_pushed_and_to_nothing_else(tmp_path: Path) -> None:
    def pushed(version: str) -> dict[str, object]:
        folder = tmp_path / "serving_model" / "siamese" / version
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").touch()
        return {"pushed": 1, "pushed_version": version}

    one = pushed("1")
    assert promote(tmp_path, {"pushed": 0}, "stable").labels == {}
    first = promote(tmp_path, one, "stable")
    assert first.labels == {"stable": 1}
    # As a second try of the step would.
    assert promote(tmp_path, one, "stable") == first
    # No label moves, but servers load it.
    second = promote(tmp_path, pushed("2"), "")
    assert (second.labels, second.loaded) == ({"stable": 1}, {1, 2})
    third = promote(tmp_path, pushed("3"), "canary")
    assert third.labels == {"stable": 1, "canary": 3}
