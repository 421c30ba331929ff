"""Defines ServingGate, which gives the InfraBlessing that Pusher asks for, without Docker."""

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
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component as function_component
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import path_utils

from components.evaluator.settings import GateSettings
from components.serving_gate.checks import Floats, PairScorer, check_export
from components.trainer import model as siamese_model
from data_ingest.records.features import Pair, read_pairs, split_files
from data_ingest.records.unsound import naming_unsound
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT
from data_ingest.sources.images import stored_form
from serving.saved_model.contract import EXTRA, KERAS_MODEL, MODEL_CARD, Preprocessing
from serving.saved_model.preprocessing import decode_images

_log = logging.getLogger(__name__)

# File names and properties are those of TFX's InfraValidator, which Pusher reads.
BLESSED = "INFRA_BLESSED"
NOT_BLESSED = "INFRA_NOT_BLESSED"
REPORT = "gate_report.json"

_BATCH = 64


@function_component
def ServingGate(  # noqa: N802
    model: InputArtifact[standard_artifacts.Model],
    examples: InputArtifact[standard_artifacts.Examples],
    blessing: OutputArtifact[standard_artifacts.InfraBlessing],
    settings: Parameter[str],
    source_hash: Parameter[str] = "",  # noqa: ARG001
) -> None:
    """Loads an export as TF Serving does, and blesses it if it serves.

    A failed check withholds the blessing, it does not fail the run; unusable images do.

    Args:
      model: the Trainer's export.
      examples: pairs to check it with; the `one_shot` split is read.
      blessing: gets INFRA_BLESSED or INFRA_NOT_BLESSED, and `gate_report.json`.
      settings: `GateSettings` as JSON.
      source_hash: of the code that checks; a part of the cache key.
    """
    limits = GateSettings.model_validate_json(settings)
    split = Path(artifact_utils.get_split_uri([examples], ONE_SHOT_SPLIT))
    with naming_unsound(split_files(split)):
        pairs = list(itertools.islice(read_pairs(split), limits.compared_pairs))
        # Or else a model would be blamed for them.
        for image in {image for pair in pairs for image in (pair.image_a, pair.image_b)}:
            stored_form(image)
    report = gate(Path(path_utils.serving_model_path(model.uri)), pairs, limits)
    _write_blessing(blessing, report)


def gate(directory: Path, pairs: Sequence[Pair], settings: GateSettings) -> dict[str, Any]:
    """Runs all checks on the SavedModel in `directory`; see `check_export` for the report."""
    if not pairs:
        return {"reasons": [f"the {ONE_SHOT_SPLIT} split has no pairs to check it with"]}
    try:
        trained = keras_scorer(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"reasons": [f"its {EXTRA} cannot be used: {type(error).__name__}: {error}"]}
    return check_export(directory, pairs, trained, settings)


def keras_scorer(directory: Path) -> PairScorer:
    """The trained model itself, from `assets.extra/model.keras`, run by Keras.

    Raises:
      OSError, ValueError, KeyError: the model or its card is missing or damaged.
    """
    card = json.loads((directory / EXTRA / MODEL_CARD).read_text(encoding="utf-8"))
    preprocessing = Preprocessing.of_card(card)
    model = keras.saving.load_model(
        directory / EXTRA / KERAS_MODEL,
        custom_objects={"WeightedL1": siamese_model.WeightedL1},
        compile=False,
    )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * 2)
    def score(images_a: tf.Tensor, images_b: tf.Tensor) -> tf.Tensor:
        seen = {
            "image_a": decode_images(images_a, preprocessing),
            "image_b": decode_images(images_b, preprocessing),
        }
        return tf.sigmoid(tf.reshape(tf.cast(model(seen, training=False), tf.float32), [-1]))

    def score_pairs(images_a: Sequence[bytes], images_b: Sequence[bytes]) -> Floats:
        batches = [slice(at, at + _BATCH) for at in range(0, len(images_a), _BATCH)]
        scores = [score(tf.constant(images_a[at]), tf.constant(images_b[at])) for at in batches]
        return np.concatenate([part.numpy() for part in scores])

    return score_pairs


def _write_blessing(blessing: types.Artifact, report: dict[str, Any]) -> None:
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
