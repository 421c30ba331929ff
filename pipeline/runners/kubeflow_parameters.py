"""Parameters of a run: what people give when they start one, in place of what was compiled.

They are inputs of the pipeline, and of the steps that depend on them and no others, so that the
cache of the others holds. In a step they take the place of its compiled settings.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from google.protobuf import json_format
from tfx.dsl.io import fileio

from data_ingest.records.catalog import SUMMARY_FILE
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT
from pipeline.config import PipelineConfig, validated
from pipeline.runners.cluster import NEWEST

EXAMPLES_NODE: Final = "PairExampleGen"
SERVED_NODE: Final = "ServedModel"
"""Is given those below as well, and checks them: it runs at once, and no training before it."""
TRAINER_NODE: Final = "Trainer"
PROMOTE_NODE: Final = "Promote"
REPORT_NODE: Final = "Report"
HTML_TITLE: Final = "system.HTML"
"""Type of the report, by which the pages of Kubeflow and Vertex AI show it."""

_OPTIONS: Final = {
    "preset": ("train.preset", "STRING", (TRAINER_NODE,)),
    "steps": ("train.steps", "NUMBER_INTEGER", (TRAINER_NODE,)),
    "seed": ("train.seed", "NUMBER_INTEGER", (TRAINER_NODE,)),
    "warm_start": ("train.warm_start", "BOOLEAN", (TRAINER_NODE,)),
    "thresholds": ("evaluate.thresholds", "STRUCT", ("Evaluator", REPORT_NODE)),
    "label": ("retrain.label", "STRING", (PROMOTE_NODE,)),
}
"""Options of the configuration by parameter: key, type, and the steps that depend on it."""
_NULL: Final = {"steps": (0, "0: the preset's"), "label": ("", "empty: nothing")}
"""What stands for null, which parameters cannot be, and how that is told."""
_PLACES: Final = {
    "data": "folder or zip of images, as the steps see it; a {SPAN} in it takes the newest",
    "span": f"newest span to train on: {NEWEST}, or its number",
}
"""Parameters of PairExampleGen that are no options."""


def definitions(
    config: PipelineConfig, places: Mapping[str, str]
) -> Iterator[tuple[str, tuple[str, ...], dict[str, Any]]]:
    """Name, steps and ComponentInputsSpec.ParameterSpec of each parameter.

    Args:
      config: has the defaults of options.
      places: defaults of `data` or `span`, of which a pipeline has one at most.
    """
    for name, default in places.items():
        yield name, (EXAMPLES_NODE,), _definition("STRING", default, _PLACES[name])
    compiled = config.model_dump(mode="json", exclude_none=True)
    for name, (key, kind, steps) in _OPTIONS.items():
        section, _, option = key.partition(".")
        null, *meaning = _NULL.get(name, (None,))
        told = type(getattr(config, section)).model_fields[option].description
        default = compiled[section].get(option, null)
        description = "; ".join([f"{key}: {told}", *meaning])
        yield name, (*steps, SERVED_NODE), _definition(kind, default, description)


def _definition(kind: str, default: Any, description: str) -> dict[str, Any]:
    return {
        "parameterType": kind,
        "defaultValue": default,
        "isOptional": True,
        "description": description,
    }


def take_parameters(invocation: Any) -> dict[str, Any]:
    """Takes the parameters of a run, by name, out of the inputs of an ExecutorInput."""
    values = invocation.inputs.parameter_values
    names = [name for name in (*_OPTIONS, *_PLACES) if name in values]
    given = {name: json_format.MessageToDict(values[name]) for name in names}
    for name in names:
        del values[name]
    return given


def configured(
    given: Mapping[str, Any], compiled: Mapping[str, Mapping[str, Any]] | None = None
) -> PipelineConfig:
    """The configuration with the parameters of a run.

    Args:
      given: parameters by name.
      compiled: sections, as far as they matter; the rest is as by default.

    Raises:
      InputError: a value is of the wrong type or out of range; the message names its option.
    """
    tree = {section: dict(options) for section, options in (compiled or {}).items()}
    for name in given.keys() & _OPTIONS.keys():
        section, _, option = _OPTIONS[name][0].partition(".")
        is_null = name in _NULL and given[name] == _NULL[name][0]
        tree.setdefault(section, {})[option] = None if is_null else given[name]
    return validated(tree, named="parameters of the run")


def sampled(examples: str) -> dict[str, Any]:
    """What PairExampleGen says of the records at this URI."""
    with fileio.open(f"{examples}/{SUMMARY_FILE}") as file:
        summary: dict[str, Any] = json.loads(file.read())
    return summary


def protocols_in(summary: Mapping[str, Any]) -> set[tuple[str, int]]:
    """(protocol, way) of the trials that there are; way is 0 of single pairs."""
    pairs = summary["splits"][ONE_SHOT_SPLIT]["pairs"]
    return {(kind["protocol"], kind["way"]) for kind in pairs}
