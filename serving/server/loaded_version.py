"""Answers requests by one loaded version: checks their inputs, queues them by signature."""

import gc
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, prediction_log_pb2

from serving.errors import Code, ServingError, invalid, reason_of
from serving.saved_model.contract import EMBED, EXTRA, SERVING, WARMUP
from serving.saved_model.loader import LoadedModel
from serving.server.batching import Array, Arrays, BatchQueue, BatchScheduler, Explain
from serving.server.grpc.tensors import array_from_proto
from serving.server.metrics import ServingMetrics
from serving.server.refused_images import SIGNATURES_OF_IMAGES, name_refused_image
from serving.server.versions import HostOptions

WARMUP_FILE: Final = Path(EXTRA) / WARMUP
MAX_RECORDS: Final = 1000


class Metadata(NamedTuple):
    """Signatures of one version. The proto is shared by all callers: read only."""

    version: int
    signatures: get_model_metadata_pb2.SignatureDefMap


class LoadedVersion:
    """A version in memory, its warm-up requests replayed.

    Args:
      folder: of the version.
      version: its number.
      name: of the model, for `metrics`.
      metrics: counts batches.
      scheduler: the threads in which it runs.
      options: how requests are merged, whether warm-up requests are replayed.

    Attributes:
      requests: how many it is answering; kept by its host.
      warmup_requests: how many were replayed.

    Raises:
      OSError: there is no SavedModel.
      ServingError: a warm-up request fails.
      tf.errors.OpError: the SavedModel is damaged.
      Exception: whatever else TensorFlow makes of a damaged file.
    """

    def __init__(
        self,
        folder: Path,
        version: int,
        *,
        name: str,
        metrics: ServingMetrics,
        scheduler: BatchScheduler,
        options: HostOptions,
    ) -> None:
        self.version = version
        self.requests = 0
        self._scheduler = scheduler
        self._model: LoadedModel | None = LoadedModel(folder)
        model = self._model
        try:
            self.warmup_requests = replay_warmup(model, folder) if options.warmup else 0
            signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=model.signature_defs)
            self.metadata = Metadata(version, signatures)
            specs = {key: InputSpec(found.inputs) for key, found in model.signatures.items()}
        except BaseException:
            model.close()
            raise
        self._endpoints = {
            signature: (
                spec,
                BatchQueue(
                    scheduler,
                    _runner(model, signature),
                    options=options.batching,
                    observer=partial(metrics.batch, name, signature),
                    explain=_explainer(model, signature),
                ),
            )
            for signature, spec in specs.items()
        }

    def submit(
        self, inputs: Arrays, *, signature: str | None, deadline: float | None
    ) -> Future[dict[str, Array]]:
        """Checks a request and puts it into the signature's queue.

        Raises:
          ServingError: FAILED_PRECONDITION: no such signature; INVALID_ARGUMENT: wrong inputs;
            RESOURCE_EXHAUSTED: the queue is full.
        """
        name = signature or SERVING
        if name not in self._endpoints:
            message = f'Serving signature key "{name}" not found.'
            raise ServingError(Code.FAILED_PRECONDITION, message)
        spec, queue = self._endpoints[name]
        return queue.submit(spec.check(inputs), deadline=deadline)

    def unload(self) -> None:
        """Frees the model; nothing may be under way."""
        for _, queue in self._endpoints.values():
            self._scheduler.remove(queue)
        self._endpoints = {}
        if self._model is not None:
            self._model.close()
            self._model = None
        # A graph is a web of cycles: without this, versions pile up until a full collection.
        gc.collect()


def replay_warmup(model: LoadedModel, folder: Path) -> int:
    """Runs every request of `assets.extra/tf_serving_warmup_requests`.

    Returns:
      How many there were; 0 without the file.

    Raises:
      ServingError: as in TF Serving the version cannot be served: more than 1,000 requests, one
        that is not a Predict request, or one that the model refuses.
    """
    path = folder / WARMUP_FILE
    if not path.is_file():
        return 0
    count = 0
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        if count == MAX_RECORDS:
            raise invalid(
                f"Number of warmup records exceeds the maximum ({MAX_RECORDS}): {WARMUP_FILE.name}"
            )
        log = prediction_log_pb2.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind != "predict_log":
            raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
        request = log.predict_log.request
        inputs = {
            name: array_from_proto(tensor, name=name) for name, tensor in request.inputs.items()
        }
        model.run(request.model_spec.signature_name or SERVING, inputs)
        count += 1
    return count


def _runner(model: LoadedModel, signature: str) -> Callable[[Arrays], dict[str, Array]]:
    """Calls the signature; what goes wrong is a `ServingError`."""

    def run(inputs: Arrays) -> dict[str, Array]:
        try:
            return model.run(signature, inputs)
        except tf.errors.OpError as error:
            message = reason_of(error.message) or type(error).__name__
            raise ServingError(Code(error.error_code), message) from error
        except (ValueError, TypeError) as error:
            # What the Session finds wrong before it runs anything.
            raise invalid(str(error)) from error

    return run


def _explainer(model: LoadedModel, signature: str) -> Explain | None:
    """Names the image for which the model refuses a request, if its requests are images."""
    if signature not in SIGNATURES_OF_IMAGES or EMBED not in model.signatures:
        return None
    return partial(name_refused_image, signature=signature, embed=_runner(model, EMBED))


class InputSpec:
    """Names, types and shapes of a signature's inputs.

    Args:
      tensors: `TensorInfo` by input name.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._specs: dict[str, tuple[tf.DType, tf.TensorShape]] = {
            name: (tf.dtypes.as_dtype(info.dtype), tf.TensorShape(info.tensor_shape))
            for name, info in sorted(tensors.items())
        }

    def check(self, inputs: Arrays) -> dict[str, Array]:
        """The inputs, strings as `bytes` in object arrays.

        Raises:
          ServingError: INVALID_ARGUMENT: a name is missing or unknown, or a type or shape is not
            the signature's.
        """
        if inputs.keys() != self._specs.keys():
            raise invalid(self._mismatch(inputs))
        checked = {}
        for position, (name, (dtype, shape)) in enumerate(self._specs.items()):
            array = np.asarray(inputs[name])
            if dtype == tf.string:
                fits = _as_bytes(array)
            else:
                fits = array if array.dtype == dtype.as_numpy_dtype else None
            if fits is None:
                raise invalid(
                    f"Expects arg[{position}] to be {dtype.name} but {_type_name(array)} is "
                    f"provided (input {name!r})"
                )
            if not shape.is_compatible_with(fits.shape):
                form = [-1 if size is None else size for size in shape.as_list()]
                raise invalid(
                    f"input {name!r} has shape {list(fits.shape)}, which is not of the form {form}"
                )
            checked[name] = fits
        return checked

    def _mismatch(self, inputs: Arrays) -> str:
        sent, known = sorted(inputs), sorted(self._specs)
        return (
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({{{','.join(sent)}}}) != len({{{','.join(known)}}}). "
            f"Sent extra: {{{','.join(sorted(set(sent) - set(known)))}}}. "
            f"Missing but required: {{{','.join(sorted(set(known) - set(sent)))}}}."
        )


def _as_bytes(array: Array) -> Array | None:
    # numpy's fixed-width bytes have lost trailing zeros already, but what is there is a string.
    if array.dtype.kind == "S":
        return array.astype(object)
    if array.dtype != object or not all(type(value) is bytes for value in array.flat):
        return None
    return array


def _type_name(array: Array) -> str:
    if array.dtype.kind in "OSU":
        return "string" if _as_bytes(array) is not None else "an array of Python objects"
    return {"float32": "float", "float64": "double"}.get(array.dtype.name, array.dtype.name)
