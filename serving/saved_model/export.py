"""Writes the SavedModel that TF Serving loads, with all that belongs to it."""

import contextlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import keras
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from data_ingest.sources.images import MAX_BYTES
from data_ingest.sources.kinds import MAX_SIDE
from serving.saved_model.contract import (
    EMBED,
    EXTRA,
    KERAS_MODEL,
    MATCH,
    MODEL_CARD,
    MODEL_NAME,
    PREPROCESSING_VERSION,
    SERVING,
    SIGNATURES,
    WARMUP,
    Preprocessing,
)
from serving.saved_model.impostors import ImpostorPairs, write_shipped
from serving.saved_model.preprocessing import decode_images
from serving.saved_model.trained_on import Digests, write_trained_on

WARMUP_BATCHES: Final = (1, 8)
VERSIONED_PACKAGES: Final = ("tensorflow", "keras", "tfx", "numpy", "siamese-oneshot")


def export_model(
    model: keras.Model,
    directory: Path,
    *,
    preprocessing: Preprocessing,
    card: Mapping[str, Any],
    warmup_images: Sequence[bytes],
    impostors: Sequence[ImpostorPairs] = (),
    trained_on: Digests | None = None,
) -> None:
    """Writes the model as a SavedModel with its four signatures, whole or not at all.

    `serving_default` takes `image_a` and `image_b`, `examples` takes serialized Examples with
    these features; both give `score` and `logit`, and embed each distinct image of the batch
    once. `embed` takes `image` and gives the weighted `embedding` v, `match` takes two of them:
    `logit = b0 - sum |v_a - v_b|`. Batches have any size; every input and output has the batch
    as dimension 0, so servers can merge requests.

    Under `assets.extra`: the Keras model for warm starts, warm-up requests for `serving_default`,
    `embed` and `match`, the model card, the impostor pairs, and the digests of the images that the
    model has seen.

    Args:
      model: with layers 'embedder' (`float32[N, *preprocessing.shape]` to vectors `float32[N, D]`)
        and 'head' (weights `w`, all >= 0, and `b0`).
      directory: where the SavedModel will be; an earlier one there is replaced.
      preprocessing: what the graph does to an image.
      card: what the caller knows (data, metrics, calibration, source hash); versions, sizes and
        signatures are added.
      warmup_images: one or more encoded images that decode.
      impostors: pairs of held-out identities, for the thresholds of galleries.
      trained_on: `digest_of` the images that shaped the weights; None where that is not known.

    Raises:
      ValueError: `warmup_images` is empty or a head weight is negative.
    """
    if not warmup_images:
        raise ValueError("a warm-up request needs at least one image")
    endpoints = _Endpoints(model, preprocessing)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # A name without digits alone: a server that polls this folder must not take it for a version.
    # Permissions are what the umask says, not the owner's alone as of tempfile.
    unfinished = directory.with_name(f".{directory.name}-{uuid.uuid4().hex[:8]}")
    unfinished.mkdir()
    try:
        archive = keras.export.ExportArchive()
        archive.track(model)
        for name, signature in SIGNATURES.items():
            inputs = [endpoints.spec(*given) for given in signature["inputs"].items()]
            archive.add_endpoint(name, getattr(endpoints, name), input_signature=inputs)
        archive.write_out(str(unfinished), verbose=False)
        extra = unfinished / EXTRA
        extra.mkdir()
        model.save(extra / KERAS_MODEL)
        _write_warmup(extra / WARMUP, endpoints, warmup_images)
        full_card = {
            **card,
            "preprocessing_version": PREPROCESSING_VERSION,
            **preprocessing.as_card(),
            "embedding_size": endpoints.embedding_size,
            "max_image_side": MAX_SIDE,
            "max_image_bytes": MAX_BYTES,
            "signatures": SIGNATURES,
            "versions": _versions(),
        }
        (extra / MODEL_CARD).write_text(json.dumps(full_card, indent=2) + "\n", encoding="utf-8")
        write_shipped(unfinished, impostors)
        if trained_on is not None:
            write_trained_on(unfinished, trained_on)
        if directory.exists():
            shutil.rmtree(directory)
        unfinished.replace(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _Endpoints:
    """The functions behind the signatures, under their names."""

    def __init__(self, model: keras.Model, preprocessing: Preprocessing) -> None:
        self._embedder = model.get_layer("embedder")
        self._head = model.get_layer("head")
        self._preprocessing = preprocessing
        self.embedding_size = int(self._head.w.shape[0])
        if float(tf.reduce_min(tf.convert_to_tensor(self._head.w))) < 0:
            raise ValueError("a head weight is negative: no L1 index could serve this model")

    def spec(self, name: str, values: str) -> tf.TensorSpec:
        """An input, whose values are written as in `SIGNATURES`."""
        if values == "string[N]":
            return tf.TensorSpec([None], tf.string, name=name)
        return tf.TensorSpec([None, self.embedding_size], tf.float32, name=name)

    def embed(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        seen = decode_images(image, self._preprocessing)
        embedding = tf.convert_to_tensor(self._head.w) * self._embedder(seen, training=False)
        return {"embedding": embedding}

    def match(self, embedding_a: tf.Tensor, embedding_b: tf.Tensor) -> dict[str, tf.Tensor]:
        distance = tf.reduce_sum(tf.abs(embedding_a - embedding_b), axis=-1)
        logit = tf.convert_to_tensor(self._head.b0) - distance
        return {"score": tf.sigmoid(logit), "logit": logit}

    def serving_default(self, image_a: tf.Tensor, image_b: tf.Tensor) -> dict[str, tf.Tensor]:
        # One-shot trials repeat their images: of 400 pairs of a 20-way run 40 images are distinct.
        distinct, place = tf.unique(tf.concat([image_a, image_b], axis=0))
        embedding = self.embed(distinct)["embedding"]
        place_a, place_b = place[: tf.size(image_a)], place[tf.size(image_a) :]
        return self.match(tf.gather(embedding, place_a), tf.gather(embedding, place_b))

    def examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        image = tf.io.FixedLenFeature([], tf.string)
        parsed = tf.io.parse_example(examples, {"image_a": image, "image_b": image})
        return self.serving_default(parsed["image_a"], parsed["image_b"])


def _write_warmup(path: Path, endpoints: _Endpoints, images: Sequence[bytes]) -> None:
    """Requests of the sizes that clients begin with, so that the first ones are not slow."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in WARMUP_BATCHES:
            batch = tf.constant([images[at % len(images)] for at in range(size)])
            vectors = endpoints.embed(batch)["embedding"]
            for signature, inputs in {
                SERVING: {"image_a": batch, "image_b": tf.reverse(batch, [0])},
                EMBED: {"image": batch},
                MATCH: {"embedding_a": vectors, "embedding_b": tf.reverse(vectors, [0])},
            }.items():
                log = prediction_log_pb2.PredictionLog()
                request = log.predict_log.request
                request.model_spec.name = MODEL_NAME
                request.model_spec.signature_name = signature
                for name, value in inputs.items():
                    request.inputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
                writer.write(log.SerializeToString())


def _versions() -> dict[str, str]:
    found = {}
    for package in VERSIONED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
