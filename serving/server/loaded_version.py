"""A version that answers requests: a loaded model with a queue for each signature."""

import gc
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, prediction_log_pb2

from serving.errors import Code, ServingError
from serving.saved_model.loader import LoadedModel
from serving.server.batching import BatchingOptions, BatchQueue, BatchScheduler
from serving.server.grpc.tensors import array_from_proto

Array = npt.NDArray[Any]
DEFAULT_SIGNATURE: Final = "serving_default"


class InputSpec:
    """Names, types and shapes of a signature's inputs.

    Args:
      tensors: `TensorInfo` by input name.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._specs: dict[str, tuple[np.dtype[Any] | None, str, tuple[int, ...] | None]] = {}
        for name in sorted(tensors):
            info = tensors[name]
            dtype = tf.dtypes.as_dtype(info.dtype)
            unknown = info.tensor_shape.unknown_rank
            shape = None if unknown else tuple(dim.size for dim in info.tensor_shape.dim)
            numpy_type = None if dtype == tf.string else np.dtype(dtype.as_numpy_dtype)
            self._specs[name] = (numpy_type, dtype.name, shape)

    def check(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs, strings as `bytes` in object arrays.

        Raises:
          ServingError: INVALID_ARGUMENT: a name is missing or unknown, or a type or shape is not
            the signature's.
        """
        if inputs.keys() != self._specs.keys():
            raise ServingError(Code.INVALID_ARGUMENT, self._mismatch(inputs))
        checked = {}
        for position, (name, (dtype, type_name, shape)) in enumerate(self._specs.items()):
            array = np.asarray(inputs[name])
            fits = _as_bytes(array) if dtype is None else (array if array.dtype == dtype else None)
            if fits is None:
                raise ServingError(
                    Code.INVALID_ARGUMENT,
                    f"Expects arg[{position}] to be {type_name} but {_type_name(array)} is provided"
                    f" (input {name!r})",
                )
            if shape is not None and not _shape_fits(fits.shape, shape):
                raise ServingError(
                    Code.INVALID_ARGUMENT,
                    f"input {name!r} has shape {list(fits.shape)}, "
                    f"which is not of the form {list(shape)}",
                )
            checked[name] = fits
        return checked

    def _mismatch(self, inputs: Mapping[str, Array]) -> str:
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


def _shape_fits(actual: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(actual) == len(wanted) and all(
        size in (-1, real) for real, size in zip(actual, wanted, strict=True)
    )


WARMUP_FILE: Final = Path("assets.extra/tf_serving_warmup_requests")
MAX_RECORDS: Final = 1000


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
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"Number of warmup records exceeds the maximum ({MAX_RECORDS}): {WARMUP_FILE.name}",
            )
        log = prediction_log_pb2.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind != "predict_log":
            raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
        request = log.predict_log.request
        inputs = {
            name: array_from_proto(tensor, name=name) for name, tensor in request.inputs.items()
        }
        model.run(request.model_spec.signature_name or "serving_default", inputs)
        count += 1
    return count


Watch = Callable[[str, int, int, float], None]  # signature, rows, rows of padding, seconds


class Metadata(NamedTuple):
    """Signatures of one version. The proto is shared by all callers: read only."""

    version: int
    signatures: get_model_metadata_pb2.SignatureDefMap


class _Endpoint(NamedTuple):
    spec: InputSpec
    queue: BatchQueue


class LoadedVersion:
    """A loaded version; made by `load_version`.

    Attributes:
      requests: how many it is answering; kept by its host.
      warmup_requests: how many were replayed.
    """

    def __init__(
        self,
        model: LoadedModel,
        version: int,
        *,
        scheduler: BatchScheduler,
        batching: BatchingOptions,
        watch: Watch,
        warmup_requests: int,
    ) -> None:
        self.version = version
        self.requests = 0
        self.warmup_requests = warmup_requests
        self.metadata = Metadata(version, get_model_metadata_pb2.SignatureDefMap())
        for name, definition in model.signature_defs.items():
            self.metadata.signatures.signature_def[name].CopyFrom(definition)
        self._model: LoadedModel | None = model
        self._scheduler = scheduler
        self._endpoints = {
            name: _Endpoint(
                InputSpec(model.signature_defs[name].inputs),
                scheduler.queue(
                    _runner(model, name), options=batching, observer=_observer(watch, name)
                ),
            )
            for name in model.signatures
        }

    def submit(
        self, inputs: Mapping[str, Array], *, signature: str | None, deadline: float | None
    ) -> Future[dict[str, Array]]:
        """Checks a request and puts it into the signature's queue.

        Raises:
          ServingError: FAILED_PRECONDITION: no such signature; INVALID_ARGUMENT: wrong inputs;
            RESOURCE_EXHAUSTED: the queue is full.
        """
        name = signature or DEFAULT_SIGNATURE
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            raise ServingError(
                Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            )
        return endpoint.queue.submit(endpoint.spec.check(inputs), deadline=deadline)

    def unload(self) -> None:
        """Frees the model; nothing may be under way."""
        for endpoint in self._endpoints.values():
            self._scheduler.remove(endpoint.queue)
        self._endpoints = {}
        if self._model is not None:
            self._model.close()
            self._model = None
        # A graph is a web of cycles: without this, versions pile up until a full collection.
        gc.collect()


def load_version(
    folder: Path,
    version: int,
    *,
    scheduler: BatchScheduler,
    batching: BatchingOptions,
    warmup: bool,
    watch: Watch,
) -> LoadedVersion:
    """Loads a version and replays its warm-up requests.

    Raises:
      OSError: there is no SavedModel.
      ServingError: a warm-up request fails.
      tf.errors.OpError: the SavedModel is damaged.
      Exception: whatever else TensorFlow makes of a damaged file.
    """
    model = LoadedModel(folder)
    try:
        replayed = replay_warmup(model, folder) if warmup else 0
        return LoadedVersion(
            model,
            version,
            scheduler=scheduler,
            batching=batching,
            watch=watch,
            warmup_requests=replayed,
        )
    except BaseException:
        model.close()
        raise


def _runner(
    model: LoadedModel, signature: str
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return model.run(signature, inputs)
        except tf.errors.OpError as error:
            raise _serving_error(error) from error
        except (ValueError, TypeError) as error:
            # What the Session finds wrong before it runs anything.
            raise ServingError(Code.INVALID_ARGUMENT, str(error)) from error

    return run


def _observer(watch: Watch, signature: str) -> Callable[[int, int, float], None]:
    return lambda rows, padding, seconds: watch(signature, rows, padding, seconds)


def _serving_error(error: tf.errors.OpError) -> ServingError:
    # Python's Session puts this in front of what the graph says.
    message = (error.message or type(error).__name__).removeprefix("Graph execution error:\n\n")
    return ServingError(Code(error.error_code), message)
