"""One node as a container of Kubeflow Pipelines runs it."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from tfx.proto import example_gen_pb2
from tfx.utils import proto_utils

from components.example_gen import make_input_config
from data_ingest.errors import InputError
from data_ingest.settings import PairSettings
from data_ingest.sources.glyphs import write_glyphs
from data_ingest.spans.store import SpanStore
from pipeline.runners.kubeflow_step import find_span, main, runs_elsewhere, take_window


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


def test_a_window_of_spans_that_landed_later_is_found_when_the_step_runs(
    spans: Path, tmp_path: Path
) -> None:
    store = SpanStore(tmp_path / "store")
    for number in (1, 2):
        source = spans / f"span-{number}.zip"
        store.land(number, [source], pairs=PairSettings(ways=(3,)), max_rejected_share=0.0)
    changed = invocation(tmp_path, images="unused")
    take_window(changed, store.root, 1)
    assert changed.inputs.parameter_values["input_base"].string_value == str(
        store.window(2, 1).base
    )
    assert patterns(changed) == store.window(2, 1).inputs
    with pytest.raises(InputError, match="oneshot ingest"):
        take_window(changed, tmp_path / "empty", 1)


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
    arguments = {
        "executor_class_path": "components.example_gen.Executor",
        "json_serialized_invocation_args": json.dumps(request),
        "json_serialized_inputs_spec_args": "{}",
    }
    assert main([f"--{name}={value}" for name, value in arguments.items()]) == 2
    assert not (tmp_path / "output.json").exists()
