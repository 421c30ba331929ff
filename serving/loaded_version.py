"""A version that answers requests: a loaded model with a queue for each signature."""

import gc
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2

from serving.batching import BatchQueue, BatchScheduler
from serving.batching_options import BatchingOptions
from serving.errors import Code, ServingError
from serving.inputs import DEFAULT_SIGNATURE, InputSpec
from serving.loader import LoadedModel
from serving.warmup import replay_warmup

Array = npt.NDArray[Any]
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
