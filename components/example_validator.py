"""Declares what records of pairs must look like, and stops the run when they do not."""

from pathlib import Path
from typing import Any

import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2
from tfx import types
from tfx.components.example_validator import component, executor
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component as function_component
from tfx.dsl.components.base import executor_spec
from tfx.types import artifact_utils, standard_artifacts

from data_ingest.errors import InputError
from data_ingest.records import features
from data_ingest.sampling import protocols

ANOMALIES_FILE = "SchemaDiff.pb"
SCHEMA_FILE_NAME = "schema.pbtxt"


def curated_schema() -> schema_pb2.Schema:
    """The schema of a record: written by hand, not inferred from whatever data came.

    Every feature is there in every record, with exactly one value. Images have an image domain,
    so that TFDV looks at them as images and not as text; names have that of texts, so that it does
    not infer one from names of several words, or dates, and call that a fault. There are no
    environments: all splits have all features.
    """
    schema = schema_pb2.Schema()
    for name in (*features.BYTES_FEATURES, *features.INT_FEATURES):
        kind = schema_pb2.INT if name in features.INT_FEATURES else schema_pb2.BYTES
        feature = schema.feature.add(name=name, type=kind)
        feature.presence.CopyFrom(schema_pb2.FeaturePresence(min_fraction=1.0, min_count=1))
        feature.shape.dim.add(size=1)
        if kind == schema_pb2.BYTES:
            feature.natural_language_domain.SetInParent()
    by_name = {feature.name: feature for feature in schema.feature}
    for name in (features.IMAGE_A, features.IMAGE_B):
        by_name[name].image_domain.minimum_supported_image_fraction = 1.0
    by_name[features.LABEL].int_domain.CopyFrom(schema_pb2.IntDomain(min=0, max=1))
    for name in (features.WAY, features.WRITER_A, features.WRITER_B):
        by_name[name].int_domain.CopyFrom(schema_pb2.IntDomain(min=0))
    by_name[features.PROTOCOL].string_domain.value.extend(protocols.PROTOCOLS)
    return schema


def schema_text() -> str:
    """`curated_schema()` as text: a parameter of `CuratedSchemaGen`, so also its cache key."""
    return str(text_format.MessageToString(curated_schema()))


def stats_options() -> tfdv.StatsOptions:
    """How StatisticsGen counts: images as images, not their bytes as text."""
    return tfdv.StatsOptions(enable_semantic_domain_stats=True)


@function_component
def CuratedSchemaGen(  # noqa: N802
    schema: OutputArtifact[standard_artifacts.Schema],
    schema_text: Parameter[str],
) -> None:
    """Writes a schema that is given as text.

    TFX's ImportSchemaGen is cached by the path of its file: an edited schema would go unseen.
    """
    directory = Path(schema.uri)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SCHEMA_FILE_NAME).write_text(schema_text, encoding="utf-8")


class Executor(executor.Executor):
    """TFX's ExampleValidator, which reports anomalies and goes on; this one stops."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> Any:
        """Validates all splits.

        Raises:
          InputError: a split is empty, or there are anomalies; the message has a line for each.
        """
        result = super().Do(input_dict, output_dict, exec_properties)
        statistics = artifact_utils.get_single_instance(input_dict["statistics"])
        for split in artifact_utils.decode_split_names(statistics.split_names):
            # TFDV finds nothing wrong with no examples at all.
            datasets = stats_artifact_utils.load_statistics(statistics, split).proto().datasets
            if not any(dataset.num_examples for dataset in datasets):
                raise InputError(f"The split {split} has no image pairs: give more images")
        message = anomalies_message(artifact_utils.get_single_uri(output_dict["anomalies"]))
        if message:
            raise InputError(message)
        return result


class ReadableExampleValidator(component.ExampleValidator):
    """TFX's ExampleValidator that fails the run when records do not fit the schema."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)


def anomalies_message(uri: str) -> str | None:
    """What is wrong with the data, for people, or None.

    Args:
      uri: an ExampleAnomalies artifact, with a folder a split.
    """
    lines = []
    for path in sorted(Path(uri).glob(f"Split-*/{ANOMALIES_FILE}")):
        split = path.parent.name.removeprefix("Split-")
        anomalies = anomalies_pb2.Anomalies.FromString(path.read_bytes())
        for name, info in sorted(anomalies.anomaly_info.items()):
            reasons = [reason.description for reason in info.reason] or [info.description]
            lines += [f"  {split}: {name}: {reason}" for reason in reasons]
        if anomalies.HasField("dataset_anomaly_info"):
            lines.append(f"  {split}: {anomalies.dataset_anomaly_info.description}")
    if not lines:
        return None
    return "\n".join(["The image pairs do not fit the schema:", *lines])
