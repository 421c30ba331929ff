"""ServingGate: gives the InfraBlessing that Pusher asks for, without Docker."""

import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, component_spec, standard_artifacts
from tfx.utils import path_utils

from components.evaluator.settings import GateSettings
from components.serving_gate.checks import Floats, PairScorer, check_export, read_card
from components.trainer import model as siamese_model
from data_ingest.records.features import Pair, read_pairs
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT
from serving.saved_model.contract import EXTRA, KERAS_MODEL, Preprocessing
from serving.saved_model.preprocessing import decode_images

_log = logging.getLogger(__name__)

# File names and properties are those of TFX's InfraValidator, which Pusher reads.
BLESSED = "INFRA_BLESSED"
NOT_BLESSED = "INFRA_NOT_BLESSED"
REPORT = "gate_report.json"

REFERENCE_BATCH = 64


class ServingGateSpec(types.ComponentSpec):
    """Inputs, outputs and parameters of ServingGate."""

    INPUTS = {
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {"blessing": component_spec.ChannelParameter(type=standard_artifacts.InfraBlessing)}
    PARAMETERS = {
        "settings": component_spec.ExecutionParameter(type=str),
        "source_hash": component_spec.ExecutionParameter(type=str),
    }


class Executor(base_executor.BaseExecutor):
    """Checks the export; a failed check is a refusal, not a failed run."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes INFRA_BLESSED or INFRA_NOT_BLESSED and `gate_report.json` into the blessing."""
        settings = GateSettings.model_validate_json(exec_properties["settings"])
        model = artifact_utils.get_single_instance(input_dict["model"])
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        directory = Path(path_utils.serving_model_path(model.uri))
        split = Path(artifact_utils.get_split_uri(input_dict["examples"], ONE_SHOT_SPLIT))
        pairs = list(itertools.islice(read_pairs(split), settings.compared_pairs))
        report = gate(directory, pairs, settings)
        write_blessing(blessing, report)


class ServingGate(base_component.BaseComponent):
    """Loads an export as TF Serving does, and blesses it if it serves.

    Output `blessing`: an InfraBlessing, with a report beside it.
    """

    SPEC_CLASS = ServingGateSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        *,
        model: types.BaseChannel,
        examples: types.BaseChannel,
        settings: GateSettings,
        source_hash: str = "",
    ) -> None:
        """Builds the node.

        Args:
          model: the Trainer's export.
          examples: pairs to check it with; the `one_shot` split is read.
          settings: limits.
          source_hash: of the code that checks; a part of the cache key.
        """
        super().__init__(
            spec=ServingGateSpec(
                model=model,
                examples=examples,
                settings=settings.model_dump_json(),
                source_hash=source_hash,
                blessing=types.Channel(type=standard_artifacts.InfraBlessing),
            )
        )


def gate(directory: Path, pairs: Sequence[Pair], settings: GateSettings) -> dict[str, Any]:
    """Runs all checks on the SavedModel in `directory`; see `check_export` for the report."""
    if not pairs:
        return {"reasons": [f"the {ONE_SHOT_SPLIT} split has no pairs to check it with"]}
    try:
        reference = keras_scorer(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"reasons": [f"its {EXTRA} cannot be used: {type(error).__name__}: {error}"]}
    return check_export(directory, pairs, reference, settings)


def keras_scorer(directory: Path) -> PairScorer:
    """The trained model itself, from `assets.extra/model.keras`, run by Keras.

    Raises:
      OSError, ValueError, KeyError: the model or its card is missing or damaged.
    """
    card = read_card(directory)
    preprocessing = Preprocessing(int(card["image_size"]), card["polarity"], card["framing"])
    model = keras.saving.load_model(
        directory / EXTRA / KERAS_MODEL,
        custom_objects={"WeightedL1": siamese_model.WeightedL1},
        compile=False,
    )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * 2)
    def score(images_a: tf.Tensor, images_b: tf.Tensor) -> tf.Tensor:
        drawings = {
            "image_a": decode_images(images_a, preprocessing),
            "image_b": decode_images(images_b, preprocessing),
        }
        return tf.sigmoid(tf.reshape(tf.cast(model(drawings, training=False), tf.float32), [-1]))

    def score_pairs(images_a: Sequence[bytes], images_b: Sequence[bytes]) -> Floats:
        starts = range(0, len(images_a), REFERENCE_BATCH)
        return np.concatenate(
            [
                score(
                    tf.constant(images_a[start : start + REFERENCE_BATCH]),
                    tf.constant(images_b[start : start + REFERENCE_BATCH]),
                ).numpy()
                for start in starts
            ]
        )

    return score_pairs


def write_blessing(blessing: types.Artifact, report: dict[str, Any]) -> None:
    """Blesses, or says why not."""
    reasons = report["reasons"]
    directory = Path(blessing.uri)
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"blessed": not reasons, **report}, indent=2) + "\n"
    (directory / REPORT).write_text(text, encoding="utf-8")
    (directory / (NOT_BLESSED if reasons else BLESSED)).touch()
    blessing.set_int_custom_property("blessed", 0 if reasons else 1)
    for reason in reasons:
        _log.warning("Not servable: %s", reason)
    if not reasons:
        latency = report["latency_ms"]["embed_1"]
        _log.info(
            "Servable: embeds an image in %.1f ms (p99 %.1f ms)", latency["p50"], latency["p99"]
        )
