"""TFX's StatisticsGen and Evaluator, which name the record that they stumble over.

The Evaluator compares the model with baselines, too.
"""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tensorflow_data_validation.statistics.generators import time_stats_generator
from tensorflow_model_analysis.proto import config_pb2
from tfx import types
from tfx.components.evaluator import component as evaluator
from tfx.components.evaluator import constants
from tfx.components.evaluator import executor as evaluator_executor
from tfx.components.statistics_gen import component as statistics_gen
from tfx.components.statistics_gen import executor as statistics_executor
from tfx.dsl.components.base import base_beam_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as specs
from tfx.utils import proto_utils
from tfx_bsl.tfxio import tf_example_record

from components.evaluator.comparison import compare
from components.evaluator.extractors import SCORING
from data_ingest.progress import advance, step
from data_ingest.records.catalog import SUMMARY_FILE
from data_ingest.records.unsound import naming_unsound
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT, SPLITS

_BEAT_BASELINES: Final = "beat_baselines"
_STATISTICS: Final = "Taking statistics"


class _NamesUnsound(base_beam_executor.BaseBeamExecutor):
    """In Beam's own error there is neither the file nor the image."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Does what the executor behind this class does.

        Raises:
          InputError: as `naming_unsound`.
        """
        examples = artifact_utils.get_single_instance(input_dict[specs.EXAMPLES_KEY])
        files = [
            f"{uri}/{name}"
            for split in artifact_utils.decode_split_names(examples.split_names)
            for uri in [artifact_utils.get_split_uri([examples], split)]
            for name in fileio.listdir(uri)
        ]
        with naming_unsound(files):
            super().Do(input_dict, output_dict, exec_properties)


class StatisticsExecutor(_NamesUnsound, statistics_executor.Executor):
    """StatisticsGen's, which looks for no times in names."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Takes the statistics.

        Raises:
          InputError: as `naming_unsound`.
        """
        examples = artifact_utils.get_single_instance(input_dict[specs.EXAMPLES_KEY])
        with step(_STATISTICS, _pairs(examples, SPLITS)), _counted(), _no_times_looked_for():
            super().Do(input_dict, output_dict, exec_properties)


@contextmanager
def _no_times_looked_for() -> Iterator[None]:
    """Meanwhile workers in this process compare texts with no formats of dates and times.

    TFDV looks for images and for times, by hundreds of expressions for each text, or for neither.
    """
    formats = time_stats_generator._TIME_RE_LIST
    time_stats_generator._TIME_RE_LIST = []
    try:
        yield
    finally:
        time_stats_generator._TIME_RE_LIST = formats


@contextmanager
def _counted() -> Iterator[None]:
    """Meanwhile workers in this process count the records that they decode for statistics.

    TFX 1.21 has no hook for that. tests/components/test_examples_readers.py fails where TFX-BSL no
    longer decodes by this class.
    """
    decoder = tf_example_record._DecodeBatchExamplesDoFn
    original = decoder.process

    def process(self: Any, examples: list[bytes]) -> Iterator[Any]:
        yield from original(self, examples)
        advance(_STATISTICS, len(examples))

    decoder.process = process
    try:
        yield
    finally:
        decoder.process = original


def _pairs(examples: types.Artifact, splits: Collection[str]) -> int | None:
    """How many records splits have; None where nothing says so."""
    summary = f"{examples.uri}/{SUMMARY_FILE}"
    if not fileio.exists(summary):
        return None
    with fileio.open(summary) as file:
        found = json.load(file)["splits"]
    pairs: int = sum(kind["pairs"] for split in splits for kind in found[split]["pairs"])
    return pairs


class EvaluatorExecutor(_NamesUnsound, evaluator_executor.Executor):
    """The Evaluator's."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Evaluates, and takes the blessing back where the model must beat baselines and does not.

        Raises:
          InputError: as `naming_unsound`.
        """
        examples = artifact_utils.get_single_instance(input_dict[specs.EXAMPLES_KEY])
        with step(SCORING, _pairs(examples, [ONE_SHOT_SPLIT])):
            super().Do(input_dict, output_dict, exec_properties)
        beat = exec_properties.get(_BEAT_BASELINES)
        if beat is None:
            return
        config = config_pb2.EvalConfig()
        proto_utils.json_to_proto(exec_properties[specs.EVAL_CONFIG_KEY], config)
        reasons = compare(
            examples=Path(artifact_utils.get_single_uri(input_dict[specs.EXAMPLES_KEY])),
            evaluation=Path(artifact_utils.get_single_uri(output_dict[specs.EVALUATION_KEY])),
            config=config,
            beat=bool(beat),
        )
        if reasons:
            _take_back(artifact_utils.get_single_instance(output_dict[specs.BLESSING_KEY]))


def _take_back(blessing: types.Artifact) -> None:
    blessed = f"{blessing.uri}/{constants.BLESSED_FILE_NAME}"
    if fileio.exists(blessed):
        fileio.remove(blessed)
    with fileio.open(f"{blessing.uri}/{constants.NOT_BLESSED_FILE_NAME}", "w") as file:
        file.write("")
    blessing.set_int_custom_property(
        constants.ARTIFACT_PROPERTY_BLESSED_KEY, constants.NOT_BLESSED_VALUE
    )


class StatisticsGen(statistics_gen.StatisticsGen):
    """TFX's, with that executor."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(StatisticsExecutor)


class Evaluator(evaluator.Evaluator):
    """TFX's, with that executor."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(EvaluatorExecutor)

    def __init__(self, *, beat_baselines: bool | None, **inputs: Any) -> None:
        """Declares the node.

        Args:
          beat_baselines: whether a model must beat baselines on the same trials to be blessed;
            None: there is no comparison.
          inputs: as TFX's takes them.
        """
        super().__init__(**inputs)
        if beat_baselines is not None:
            self.spec.exec_properties[_BEAT_BASELINES] = int(beat_baselines)
