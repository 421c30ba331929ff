"""TFX's StatisticsGen and Evaluator, which name the record that they stumble over."""

from typing import Any

from tfx import types
from tfx.components.evaluator import component as evaluator
from tfx.components.evaluator import executor as evaluator_executor
from tfx.components.statistics_gen import component as statistics_gen
from tfx.components.statistics_gen import executor as statistics_executor
from tfx.dsl.components.base import base_beam_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as specs

from data_ingest.records.unsound import naming_unsound


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
    """StatisticsGen's."""


class EvaluatorExecutor(_NamesUnsound, evaluator_executor.Executor):
    """The Evaluator's."""


class StatisticsGen(statistics_gen.StatisticsGen):
    """TFX's, with that executor."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(StatisticsExecutor)


class Evaluator(evaluator.Evaluator):
    """TFX's, with that executor."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(EvaluatorExecutor)
