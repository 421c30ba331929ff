"""A SavedModel that is exported in a moment and refuses some inputs, for tests of the server."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from serving.server.loaded_version import WARMUP_FILE

v1 = tf.compat.v1


def export_word_model(directory: Path, *, offset: int = 0) -> Path:
    """Writes the model and returns `directory`.

    | signature | gives |
    |---|---|
    | `serving_default` | for each word `length`: its length plus `offset`; `word`: itself |
    | `sum` | `sum`: of two vectors `a` and `b` |

    Empty words are refused.
    """
    with tf.Graph().as_default(), v1.Session() as session:
        shift = v1.get_variable("shift", initializer=tf.constant(offset))
        text = v1.placeholder(tf.string, [None], name="text")
        a = v1.placeholder(tf.float32, [None, 3], name="a")
        b = v1.placeholder(tf.float32, [None, 3], name="b")
        signatures = {
            "serving_default": _predict({"text": text}, _echo(text, shift)),
            "sum": _predict({"a": a, "b": b}, {"sum": tf.add(a, b)}),
        }
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    return directory


def write_warmup(directory: Path, *words: bytes) -> None:
    """Gives the version one warm-up request for each word."""
    path = directory / WARMUP_FILE
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for word in words:
            request = predict_pb2.PredictRequest()
            request.inputs["text"].CopyFrom(tf.make_tensor_proto([word]))
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())


def push(exported: Path, base_path: Path, version: int) -> Path:
    """Lets a version appear whole, as the pipeline's pusher does."""
    unfinished = base_path / f".{version}-unfinished"
    shutil.copytree(exported, unfinished)
    return unfinished.rename(base_path / str(version))


def words(*values: bytes) -> dict[str, np.ndarray]:
    """Inputs of `serving_default`."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return {"text": array}


def _length(word: Any) -> Any:
    length = tf.strings.length(word)
    with tf.control_dependencies([v1.assert_positive(length, message="empty word")]):
        return tf.identity(length)


def _echo(text: Any, shift: Any) -> dict[str, Any]:
    return {"length": _length(text) + shift, "word": tf.identity(text)}


def _predict(inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
    return v1.saved_model.predict_signature_def(inputs, outputs)
