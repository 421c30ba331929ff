"""Runs one node of the graph in a container of Kubeflow Pipelines or Vertex AI.

`python -m pipeline.runners.kubeflow_step ARGUMENTS` stands between the orchestrator and TFX's own
entry point, whose arguments it takes, and does what that one leaves out:

- Artifacts are used where the orchestrator puts them: open-source Kubeflow copies the inputs to
  `/minio`, `/s3` or `/gcs` and uploads the outputs from there, Vertex AI mounts Cloud Storage at
  `/gcs`. So nodes meet ordinary files, whatever the object store.
- The span and the fingerprint of the images are found here. Where they come from is TFX's hook
  before the cache is asked, which open-source Kubeflow does not run.
- A model that stands for none (see `components.pusher.earlier_models`) is left out of the inputs.
- Parameters of the run take the place of what was compiled; see `kubeflow_parameters`.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from tfx.components.example_gen import utils as example_gen_utils
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor
from tfx.proto import example_gen_pb2, range_config_pb2
from tfx.types import standard_component_specs
from tfx.utils import import_utils, proto_utils

from components import example_gen
from components.evaluator.eval_config import eval_config
from components.examples_readers import EvaluatorExecutor
from components.pusher.earlier_models import ABSENT
from data_ingest.errors import InputError
from data_ingest.settings import DatasetSettings
from data_ingest.sources.dataset import Dataset
from data_ingest.sources.resolve import resolve
from pipeline.runners.cluster import NEWEST, window_up_to
from pipeline.runners.kubeflow_parameters import (
    HTML_TITLE,
    configured,
    protocols_in,
    sampled,
    take_parameters,
)
from pipeline.runners.kubeflow_release import DATA, SECONDS
from pipeline.runners.local import require_trainable
from pipeline.runs.status import ExitCode
from pipeline.settings import LOCAL_BEAM_RUNNER

_log = logging.getLogger(__name__)
MOUNTS: Final[Mapping[str, str]] = MappingProxyType(
    {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}
)
"""Where Kubeflow's launcher and Vertex AI show an object store."""


def main(argv: Sequence[str], *, mounts: Mapping[str, str] = MOUNTS) -> ExitCode:
    """Runs one node.

    Args:
      argv: TFX's arguments (`--executor_class_path`, `--json_serialized_invocation_args`,
        `--json_serialized_inputs_spec_args`), and Beam's.
      mounts: folder by URI scheme.

    Returns:
      The exit code: 0, or 2 where the images or settings are at fault.
    """
    parser = argparse.ArgumentParser(prog="kubeflow_step", allow_abbrev=False)
    parser.add_argument("--executor_class_path", required=True)
    parser.add_argument("--json_serialized_invocation_args", required=True)
    parser.add_argument("--json_serialized_inputs_spec_args", required=True)
    # Of the PairExampleGen alone, and only where spans are trained on.
    parser.add_argument("--spans_folder", type=Path)
    parser.add_argument("--spans_window", type=int, default=0)
    # Of the node that checks the parameters of the run: what they take the place of.
    parser.add_argument("--checked_train")
    parser.add_argument("--checked_kind")
    started = time.monotonic()
    arguments, beam_args = parser.parse_known_args(argv)
    invocation = json_format.Parse(
        arguments.json_serialized_invocation_args,
        pipeline_spec_pb2.ExecutorInput(),
        ignore_unknown_fields=True,
    )
    executor = import_utils.import_class_by_path(arguments.executor_class_path)
    _leave_out_absent(invocation)
    invocation.outputs.output_file = _renamed(invocation.outputs.output_file, mounts)
    # Workers on other machines see the object store, not what is mounted here.
    if not (issubclass(executor, BaseBeamExecutor) and runs_elsewhere(beam_args)):
        for listed in chain(
            invocation.inputs.artifacts.values(), invocation.outputs.artifacts.values()
        ):
            for artifact in listed.artifacts:
                artifact.uri = _renamed(artifact.uri, mounts)
                if artifact.type.schema_title == HTML_TITLE:
                    artifact.type.schema_title = "tfx.File"
    given = take_parameters(invocation)
    try:
        if arguments.checked_train is not None:
            compiled = {"train": json.loads(arguments.checked_train)}
            kind = Dataset("folder", Path(), {}, "", arguments.checked_kind)
            require_trainable(configured(given, compiled), kind)
        elif issubclass(executor, example_gen.Executor):
            if arguments.spans_folder is not None:
                folder, length = arguments.spans_folder, arguments.spans_window
                last = given.get("span", NEWEST)
                dataset = window_up_to(folder, length, last)
                _log.info("%s", dataset.description)
                take_dataset(invocation, dataset)
            elif "data" in given:
                take_dataset(invocation, _images(Path(_renamed(given["data"], mounts))))
            find_span(invocation)
        else:
            apply_options(invocation, given, issubclass(executor, EvaluatorExecutor))
        arguments.json_serialized_invocation_args = json_format.MessageToJson(invocation)
        kubeflow_v2_run_executor.main((arguments, beam_args))
    except InputError as error:
        _log.error("%s", error)
        return ExitCode.USAGE
    seconds = time.monotonic() - started
    _complete_output(Path(invocation.outputs.output_file), mounts, seconds)
    return ExitCode.DONE


def runs_elsewhere(beam_args: Sequence[str]) -> bool:
    """Whether Beam's workers are on other machines."""
    runners = [arg.partition("=")[2] for arg in beam_args if arg.startswith("--runner=")]
    return bool(runners) and runners[-1] != LOCAL_BEAM_RUNNER


def take_dataset(invocation: Any, dataset: Dataset) -> None:
    """Makes these images the input of the PairExampleGen, an ExecutorInput."""
    parameters = invocation.inputs.parameter_values
    parameters[standard_component_specs.INPUT_BASE_KEY].string_value = str(dataset.base)
    parameters[standard_component_specs.INPUT_CONFIG_KEY].string_value = proto_utils.proto_to_json(
        example_gen.make_input_config(dataset.inputs)
    )


def _images(data: Path) -> Dataset:
    # Their kind is compiled into the steps.
    settings = DatasetSettings(source="folder", kind="drawing")
    return resolve(settings, data=data, environ={}, synthetic_dir=Path(os.devnull))


def apply_options(invocation: Any, given: Mapping[str, Any], evaluates: bool) -> None:
    """Puts the options among the parameters of a run in the place of a node's compiled settings.

    Args:
      invocation: ExecutorInput of the node.
      given: parameters by name.
      evaluates: whether it is the Evaluator, whose thresholds are made to fit the trials that its
        examples have.

    Raises:
      InputError: a value is of the wrong type or out of range.
    """
    if not given:
        return
    values = invocation.inputs.parameter_values
    custom_config = standard_component_specs.CUSTOM_CONFIG_KEY
    if evaluates:
        (examples,) = invocation.inputs.artifacts[standard_component_specs.EXAMPLES_KEY].artifacts
        judged = eval_config(configured(given).evaluate, protocols_in(sampled(examples.uri)))
        values[standard_component_specs.EVAL_CONFIG_KEY].string_value = proto_utils.proto_to_json(
            judged
        )
    elif custom_config in values:
        custom = json.loads(values[custom_config].string_value)
        compiled = {"train": json.loads(custom["train"])}
        custom["train"] = configured(given, compiled).train.model_dump_json()
        values[custom_config].string_value = json.dumps(custom)
    elif "evaluate" in values:
        values["evaluate"].string_value = configured(given).evaluate.model_dump_json()
    else:
        values["label"].string_value = configured(given).retrain.label or ""


def find_span(invocation: Any) -> None:
    """Resolves the input patterns of an ExecutorInput to the newest span; notes the fingerprint.

    What TFX's driver does, but by content: see `components.example_gen.ContentInputProcessor`.

    Raises:
      InputError: nothing matches a pattern.
    """
    parameters = invocation.inputs.parameter_values
    config = example_gen_pb2.Input()
    input_config = parameters[standard_component_specs.INPUT_CONFIG_KEY]
    proto_utils.json_to_proto(input_config.string_value, config)
    wanted = None
    if standard_component_specs.RANGE_CONFIG_KEY in parameters:
        wanted = range_config_pb2.RangeConfig()
        given = parameters[standard_component_specs.RANGE_CONFIG_KEY].string_value
        proto_utils.json_to_proto(given, wanted)
    base = parameters[standard_component_specs.INPUT_BASE_KEY].string_value
    processor = example_gen.ContentInputProcessor(base, config.splits, wanted)
    span, version = processor.resolve_span_and_version()
    for split in config.splits:
        split.pattern = processor.get_pattern_for_span_version(split.pattern, span, version)
    input_config.string_value = proto_utils.proto_to_json(config)
    (examples,) = invocation.outputs.artifacts[standard_component_specs.EXAMPLES_KEY].artifacts
    examples.metadata[example_gen_utils.SPAN_PROPERTY_NAME] = span
    examples.metadata[example_gen_utils.FINGERPRINT_PROPERTY_NAME] = (
        processor.get_input_fingerprint(span, version)
    )
    places = [f"{base}/{split.pattern}" for split in config.splits]
    examples.metadata[DATA] = f"images in {', '.join(places)}"
    if version is not None:
        examples.metadata[example_gen_utils.VERSION_PROPERTY_NAME] = version


def _leave_out_absent(invocation: Any) -> None:
    inputs = invocation.inputs.artifacts
    for name in list(inputs):
        if any(ABSENT in artifact.metadata for artifact in inputs[name].artifacts):
            _log.info("Input %s: there is none yet", name)
            del inputs[name]


def _complete_output(output_file: Path, mounts: Mapping[str, str], seconds: float) -> None:
    """Gives the orchestrator the URIs that it knows, and notes how long the node took."""
    schemes = {folder: scheme for scheme, folder in mounts.items()}
    output = json_format.Parse(output_file.read_text("utf-8"), pipeline_spec_pb2.ExecutorOutput())
    for listed in output.artifacts.values():
        for artifact in listed.artifacts:
            artifact.uri = _renamed(artifact.uri, schemes)
            artifact.metadata[SECONDS] = round(seconds, 2)
            # The blessing names the models that it is about.
            for key, value in artifact.metadata.items():
                if isinstance(value, str):
                    artifact.metadata[key] = _renamed(value, schemes)
    output_file.write_text(json_format.MessageToJson(output), encoding="utf-8")


def _renamed(path: str, prefixes: Mapping[str, str]) -> str:
    """The path with the first prefix that it has replaced."""
    for old, new in prefixes.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(main(sys.argv[1:]))
