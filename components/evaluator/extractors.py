"""TFMA extractors that make TFX's Evaluator embed each image once and handle trials whole.

The Evaluator finds `custom_extractors` here through its `module_path`.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, Final

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis import constants
from tensorflow_model_analysis.extractors import extractor
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.utils import model_util
from tfx_bsl.tfxio import tensor_adapter

from data_ingest.progress import advance
from data_ingest.records import features
from serving.saved_model.contract import EMBED, MATCH

IMAGES_PER_BATCH: Final = 256
SCORING: Final = "Scoring pairs"
MEASURED_FEATURES: Final = (features.TRIAL, features.PROTOCOL, features.WAY, features.GROUP_A)
_KEPT_BYTES: Final = 128 * 2**20
"""Of embeddings, by model and worker."""


def custom_extractors(
    eval_shared_model: Any,
    eval_config: config_pb2.EvalConfig,
    tensor_adapter_config: tensor_adapter.TensorAdapterConfig | None,
) -> list[extractor.Extractor]:
    """TFMA's extractors, with a prediction of our own.

    Each image is in twenty and more pairs, so what is predicted is its embedding, once, and then
    how two embeddings match. Images go no further. What follows takes its time for each element,
    so an element is not a pair, as usual with TFMA, but all pairs of a trial in a batch.
    """
    del tensor_adapter_config  # There is none without a schema.
    models = {
        model.model_name: model.model_loader
        for model in model_util.verify_and_update_eval_shared_models(eval_shared_model)
    }
    return [
        tfma.extractors.FeaturesExtractor(eval_config),
        tfma.extractors.LabelsExtractor(eval_config),
        extractor.Extractor("EmbedAndMatch", beam.ParDo(EmbedAndMatch(models))),
        extractor.Extractor("ByTrial", beam.FlatMap(by_trial)),
        tfma.extractors.SliceKeyExtractor(eval_config=eval_config, materialize=False),
    ]


class EmbedAndMatch(model_util.DoFnWithModels):
    """Scores the pairs of a batch by the signatures `embed` and `match`, and drops the images."""

    def setup(self) -> None:
        super().setup()
        self._embeddings: dict[str, dict[bytes, npt.NDArray[np.float32]]] = {
            name: {} for name in self._loaded_models
        }

    def process(self, extracts: dict[str, Any]) -> Iterator[dict[str, Any]]:
        of_batch = extracts[constants.FEATURES_KEY]
        sides = (np.ravel(of_batch[name]) for name in (features.IMAGE_A, features.IMAGE_B))
        images, predictions = np.concatenate([*sides]).tolist(), {}
        for name, model in self._loaded_models.items():
            a, b = np.split(self._embed(name, images), 2)
            matched = model.signatures[MATCH](
                embedding_a=tf.constant(a), embedding_b=tf.constant(b)
            )
            predictions[name] = {key: value.numpy() for key, value in matched.items()}
        advance(SCORING, len(images) // 2)
        yield {
            constants.FEATURES_KEY: {name: of_batch[name] for name in MEASURED_FEATURES},
            constants.LABELS_KEY: extracts[constants.LABELS_KEY],
            # By model only where there are several, as elsewhere in TFMA.
            constants.PREDICTIONS_KEY: predictions if len(predictions) > 1 else predictions[""],
        }

    def _embed(self, name: str, images: Sequence[bytes]) -> npt.NDArray[np.float32]:
        known, embed = self._embeddings[name], self._loaded_models[name].signatures[EMBED]
        digests = [blake2b(image, digest_size=16).digest() for image in images]
        missing = iter(
            {
                key: image for key, image in zip(digests, images, strict=True) if key not in known
            }.items()
        )
        while part := dict(islice(missing, IMAGES_PER_BATCH)):
            found = embed(image=tf.constant([*part.values()]))["embedding"].numpy()
            known.update(zip(part, found, strict=True))
        embeddings = np.stack([known[key] for key in digests])
        for key in [*islice(known, max(0, len(known) - _KEPT_BYTES // embeddings[0].nbytes))]:
            del known[key]
        return embeddings


def by_trial(extracts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Takes a batch apart into labels and logits `[K]` of the K pairs that a trial has in it.

    Pairs outside trials come by protocol and group.
    """
    named = {
        name: np.asarray(extracts[constants.FEATURES_KEY][name]).reshape(-1)
        for name in MEASURED_FEATURES
    }
    rows: dict[tuple[Any, ...], list[int]] = {}
    for row, values in enumerate(zip(*named.values(), strict=True)):
        rows.setdefault(values, []).append(row)
    for values, part in rows.items():
        features_of_part = zip(named, values, strict=True)
        yield {
            constants.FEATURES_KEY: {name: np.array([value]) for name, value in features_of_part},
            **{
                key: _rows(extracts[key], part)
                for key in (constants.LABELS_KEY, constants.PREDICTIONS_KEY)
            },
        }
    advance("Evaluating", sum(map(len, rows.values())))


def _rows(values: Any, rows: list[int]) -> Any:
    if isinstance(values, Mapping):
        return {key: _rows(of_key, rows) for key, of_key in values.items()}
    return np.asarray(values).reshape(-1)[rows]
