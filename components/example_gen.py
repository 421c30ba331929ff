"""Ingests images as TFRecords of pairs, in the splits train, eval and one_shot."""

import copy
import errno
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format, struct_pb2
from tfx import types
from tfx.components.example_gen import component, driver, input_processor, write_split
from tfx.components.example_gen import utils as example_gen_utils
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.proto import example_gen_pb2, range_config_pb2
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as specs
from tfx.utils import proto_utils

from data_ingest.errors import InputError, ReadError, shown
from data_ingest.progress import step
from data_ingest.records.catalog import (
    COPIES_FILE,
    REJECTED_FILE,
    SUMMARY_FILE,
    told_noise,
    told_reasons,
)
from data_ingest.records.read import READING, list_inputs
from data_ingest.records.write import write_pairs
from data_ingest.sampling.protocols import SPLITS
from data_ingest.settings import PairSettings
from data_ingest.sources.dataset import Dataset
from data_ingest.sources.kinds import Crop, Kind

_SETTINGS: Final = "pair_settings"
_MAX_REJECTED_SHARE: Final = "max_rejected_share"
_WRITER_PATTERN: Final = "writer_pattern"
_DATASET: Final = "dataset"
_KIND: Final = "kind"
_MAX_SIDE: Final = "max_side"
_CROP: Final = "crop"
_SOURCE_HASH: Final = "source_hash"
_NAMED_REJECTED: Final = 5
_WORKER_ERROR: Final = re.compile(r"data_ingest\.errors\.(InputError|ReadError): (.+) \[while runn")
_NO_SPACE: Final = os.strerror(errno.ENOSPC)

_log = logging.getLogger(__name__)


class Executor(base_beam_executor.BaseBeamExecutor):
    """Samples and writes the records of all splits.

    Takes the place of TFX's `BaseExampleGenExecutor`, which names output splits after the input
    splits and writes records in an order that changes from run to run.
    """

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes gzip TFRecords of Examples, `sampling.json`, `rejected.jsonl` and `copies.jsonl`.

        Raises:
          InputError: the images do not do, or too many are rejected.
          ReadError: this machine keeps an image from being read.
          OSError: the disk is full.

        Nothing is left behind where it fails.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        config = _custom_config(exec_properties)
        examples = artifact_utils.get_single_instance(output_dict[specs.EXAMPLES_KEY])
        try:
            inputs = list_inputs(
                _dataset(exec_properties).containers(), writer_pattern=config[_WRITER_PATTERN]
            )
            images = sum(len(portion.images) for portion in inputs.portions)
            _log.info("Reading %d images", images)
            with step(READING, images), self._make_beam_pipeline() as pipeline:
                write_pairs(
                    pipeline,
                    inputs,
                    PairSettings.model_validate_json(config[_SETTINGS]),
                    directory=examples.uri,
                    max_rejected_share=config[_MAX_REJECTED_SHARE],
                    dataset=config[_DATASET],
                    kind=config[_KIND],
                    max_side=None if config[_MAX_SIDE] is None else int(config[_MAX_SIDE]),
                    crop=config[_CROP],
                )
            with fileio.open(f"{examples.uri}/{SUMMARY_FILE}") as stream:
                summary = json.loads(stream.read())
            if summary["problem"]:
                raise InputError(summary["problem"])
        except BaseException as error:
            _clear(examples.uri)
            # TensorFlow's error, which Beam wraps into a RuntimeError of several pages.
            if _NO_SPACE in str(error):
                message = "the disk is full: free some space and run again"
                raise OSError(errno.ENOSPC, message, examples.uri) from error
            plain = _worker_error(error)
            if plain is not None:
                raise plain from error
            raise
        _log_summary(summary, examples.uri)
        examples.split_names = artifact_utils.encode_split_names(list(SPLITS))
        examples_utils.set_payload_format(examples, exec_properties[specs.OUTPUT_DATA_FORMAT_KEY])
        examples_utils.set_file_format(
            examples,
            write_split.to_file_format_str(exec_properties[specs.OUTPUT_FILE_FORMAT_KEY]),
        )


class ContentInputProcessor(input_processor.FileBasedInputProcessor):
    """Resolves spans as TFX does, but takes the fingerprint of the images, not of their container.

    TFX's fingerprint is made of sizes and modification times in seconds of what the pattern
    matches: blind to a change deep in a folder, alarmed by a fresh copy of the same zip.
    """

    def resolve_span_and_version(self) -> tuple[int, int | None]:
        """Finds the latest span and version.

        Raises:
          InputError: nothing matches a pattern, or the patterns do not go together.
        """
        resolved = [copy.deepcopy(split) for split in self._splits]
        try:
            _, span, version = example_gen_utils.calculate_splits_fingerprint_span_and_version(
                self._input_base_uri, resolved, self._range_config
            )
        except ValueError as error:
            raise InputError(f"{self._input_base_uri}: {error}") from error
        self._resolved = {
            given.pattern: found.pattern
            for given, found in zip(self._splits, resolved, strict=True)
        }
        dataset = _dataset_of(self._input_base_uri, resolved)
        for split, containers in dataset.containers().items():
            if not containers:
                raise InputError(f"{dataset.base}: nothing matches {dataset.inputs[split]}")
        self._fingerprint = dataset.fingerprint()
        return span, version

    def get_pattern_for_span_version(self, pattern: str, span: int, version: int | None) -> str:
        """The pattern as found on disk: `span-01` where `span-{SPAN}` matched that."""
        del span, version
        resolved: str = self._resolved[pattern]
        return resolved


class Driver(driver.FileBasedDriver):
    """Chooses the span, and decides by content whether there is anything new to read."""

    def get_input_processor(
        self,
        splits: Iterable[example_gen_pb2.Input.Split],
        range_config: range_config_pb2.RangeConfig | None = None,
        input_base_uri: str | None = None,
    ) -> ContentInputProcessor:
        return ContentInputProcessor(input_base_uri, splits, range_config)


class PairExampleGen(component.FileBasedExampleGen):
    """Samples image pairs and one-shot trials from zips or folders of images.

    Output `examples`: splits `train`, `eval` and `one_shot` of records as in
    `data_ingest.records.features`; beside them `sampling.json` (what was read and
    written), `rejected.jsonl` (images that cannot be used, and why) and `copies.jsonl`.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)
    DRIVER_CLASS = Driver

    def __init__(
        self,
        *,
        input_base: str,
        input_config: example_gen_pb2.Input,
        pair_settings: PairSettings,
        max_rejected_share: float,
        source_hash: str,
        writer_pattern: str | None = None,
        dataset: str = "folder",
        kind: Kind = "drawing",
        max_side: int | None = None,
        crop: Crop | None = None,
        range_config: range_config_pb2.RangeConfig | None = None,
    ) -> None:
        """Declares the node.

        Args:
          input_base: folder that the patterns are relative to.
          input_config: patterns by input split, as `make_input_config` gives them.
          pair_settings: what is sampled.
          max_rejected_share: share of unusable images, 0 to 1, above which the node fails.
          source_hash: hash of the code that makes the records; part of the cache key.
          writer_pattern: `DatasetSettings.writer_pattern`.
          dataset: source of the images (`omniglot`, `folder`, `synthetic`), noted in
            `sampling.json`.
          kind: kind of the images, in the form of which they are stored; noted there, too.
          max_side: `DatasetSettings.max_side`.
          crop: `DatasetSettings.crop`.
          range_config: which span to take; the latest where None.
        """
        values = struct_pb2.Struct()
        values.update(
            {
                _SETTINGS: pair_settings.model_dump_json(),
                _MAX_REJECTED_SHARE: max_rejected_share,
                _WRITER_PATTERN: writer_pattern,
                _DATASET: dataset,
                _KIND: kind,
                _MAX_SIDE: max_side,
                _CROP: crop,
                _SOURCE_HASH: source_hash,
            }
        )
        custom_config = example_gen_pb2.CustomConfig()
        custom_config.custom_config.Pack(values)
        super().__init__(
            input_base=input_base,
            input_config=input_config,
            # Left empty: TFX allows none beside several inputs, and the executor names the splits.
            output_config=example_gen_pb2.Output(),
            custom_config=custom_config,
            range_config=range_config,
        )


def make_input_config(inputs: Mapping[str, str]) -> example_gen_pb2.Input:
    """Makes ExampleGen's input configuration of `Dataset.inputs`."""
    return example_gen_pb2.Input(
        splits=[
            example_gen_pb2.Input.Split(name=name, pattern=pattern)
            for name, pattern in sorted(inputs.items())
        ]
    )


def _dataset(exec_properties: Mapping[str, Any]) -> Dataset:
    config = example_gen_pb2.Input()
    proto_utils.json_to_proto(exec_properties[specs.INPUT_CONFIG_KEY], config)
    return _dataset_of(exec_properties[specs.INPUT_BASE_KEY], config.splits)


def _dataset_of(base: str, splits: Iterable[example_gen_pb2.Input.Split]) -> Dataset:
    patterns = {split.name: split.pattern for split in splits}
    return Dataset("folder", Path(base), patterns, f"images in {base}")


def _custom_config(exec_properties: Mapping[str, Any]) -> dict[str, Any]:
    custom_config = example_gen_pb2.CustomConfig()
    proto_utils.json_to_proto(exec_properties[specs.CUSTOM_CONFIG_KEY], custom_config)
    values = struct_pb2.Struct()
    custom_config.custom_config.Unpack(values)
    unpacked: dict[str, Any] = json_format.MessageToDict(values)
    return unpacked


def _worker_error(error: BaseException) -> InputError | ReadError | None:
    """The error of ours that reading met in a worker, without what Beam puts around it."""
    text = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
    found = _WORKER_ERROR.search(text)
    if found is None:
        return None
    return InputError(found[2]) if found[1] == "InputError" else ReadError(found[2])


def _clear(directory: str) -> None:
    """Empties the folder but leaves it: TFX, too, removes it, and fails where it is not there."""
    if fileio.isdir(directory):
        fileio.rmtree(directory)
        fileio.makedirs(directory)


def _log_summary(summary: Mapping[str, Any], folder: str) -> None:
    images = summary["images"]
    if images["rejected"]:
        file = f"{folder}/{REJECTED_FILE}"
        with fileio.open(file) as lines:
            names = [shown(json.loads(line)["file"]) for line in islice(lines, _NAMED_REJECTED)]
        told = f"{told_reasons(images['rejected'])}, such as {', '.join(names)}"
        _log.warning("Images left out: %s; listed in %s", told, file)
    for one, other in images["in_two_classes"]:
        _log.warning("%s", told_noise(one, other))
    if copies := sum(images["duplicates"].values()):
        copy, kept = images["copies"][0]
        told = f"{copies:,}, such as {shown(copy)}, the same as {shown(kept)}"
        _log.info("Copies left out: %s; listed in %s", told, f"{folder}/{COPIES_FILE}")
    groups = [set(split["groups"]) for split in summary["splits"].values()]
    if len(set().union(*groups)) > 2 and groups[0].intersection(*groups[1:2]):
        _log.warning("The groups are too unequal to be divided among the splits: classes were")
    for name, split in summary["splits"].items():
        if alone := split["classes_of_one_image"]:
            _log.warning(
                "%d of %d classes of the %s split have a single image: others are told from them, "
                "and nothing is asked about them",
                alone,
                split["classes"],
                name,
            )
    written = ", ".join(
        f"{sum(kind['pairs'] for kind in split['pairs']):,} {name}"
        for name, split in summary["splits"].items()
    )
    _log.info("Pairs written: %s", written)
