"""One model by name: requests to whichever of its versions should answer."""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from serving.awaiting import Awaiter
from serving.batching import BatchScheduler
from serving.errors import Code, ServingError
from serving.loaded_version import Metadata
from serving.version_manager import HostOptions, VersionManager
from serving.version_states import State, VersionStatus

__all__ = ["HostOptions", "Metadata", "ModelHost", "Prediction", "State", "VersionStatus"]

Array = npt.NDArray[Any]


class Prediction(NamedTuple):
    """What the model answered, and which version of it."""

    outputs: dict[str, Array]
    version: int


class BatchWatcher(Protocol):
    """Told of the batches that ran; called from the threads that run them."""

    def batch(self, *, model: str, signature: str, size: int, padding: int, seconds: float) -> None:
        """A merged batch of `size` rows, `padding` rows of filler not counted, ran."""


class ModelHost:
    """One model name: polls its base path, serves the versions that its policy asks for.

    See `VersionManager` for how versions come and go. Every method is thread-safe.

    Example:
      host = ModelHost("siamese", Path("output/serving_model/siamese"), options=HostOptions())
      host.start()
      host.wait_available(60)
      vectors = host.predict({"image": np.array([png])}, signature="embed").outputs["embedding"]

    Args:
      name: as in requests.
      base_path: folder of the version folders.
      options: see `HostOptions`.
      scheduler: threads shared with other models; its own ones unless given.
      watcher: told of each batch.
    """

    def __init__(
        self,
        name: str,
        base_path: Path,
        *,
        options: HostOptions,
        scheduler: BatchScheduler | None = None,
        watcher: BatchWatcher | None = None,
    ) -> None:
        self.name = name
        self.base_path = base_path
        self._watcher = watcher
        self._awaiter: Awaiter[dict[str, Array]] = Awaiter()
        self._own_scheduler: BatchScheduler | None = None
        if scheduler is None:
            scheduler = self._own_scheduler = BatchScheduler(options.batching.num_batch_threads)
        self._versions = VersionManager(
            name, base_path, options=options, scheduler=scheduler, watch=self._watch
        )

    @property
    def options(self) -> HostOptions:
        """As given, or as last updated."""
        return self._versions.options

    def start(self) -> None:
        """Begins to poll; returns at once (see `wait_available`)."""
        self._versions.start()

    def update(self, options: HostOptions) -> None:
        """Changes policy or labels; takes effect at once, loading excepted."""
        self._versions.update(options)

    def close(self) -> None:
        """Refuses new requests, finishes those under way and unloads every version."""
        self._versions.close()
        if self._own_scheduler is not None:
            self._own_scheduler.close()

    def wait_available(self, timeout: float | None = None) -> bool:
        """Whether a version is AVAILABLE before `timeout` seconds are over."""
        return self._versions.wait_available(timeout)

    def wait_settled(self, timeout: float | None = None) -> bool:
        """Whether every version asked for has been loaded, or has failed, within `timeout`."""
        return self._versions.wait_settled(timeout)

    def predict(
        self,
        inputs: Mapping[str, Array],
        *,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        deadline: float | None = None,
    ) -> Prediction:
        """Runs a signature, merged with other requests of the moment; blocks until it is done.

        Args:
          inputs: by input name; dimension 0 is the batch; strings as `bytes` in object arrays.
          signature: `serving_default` unless given.
          version: the newest loaded one unless given.
          label: instead of `version`.
          deadline: an instant of `time.monotonic()`.

        Raises:
          ServingError: with TF Serving's code and message. NOT_FOUND: no such version is loaded;
            FAILED_PRECONDITION: no such signature; INVALID_ARGUMENT: unknown label, wrong inputs,
            or the graph refuses the values; RESOURCE_EXHAUSTED: the queue is full;
            DEADLINE_EXCEEDED; UNAVAILABLE: the server is shutting down.
        """
        future, answered_by = self._submit(inputs, signature, version, label, deadline)
        try:
            return Prediction(future.result(_seconds_left(deadline)), answered_by)
        except FutureTimeout:
            future.cancel()
            raise _too_late() from None

    async def predict_async(
        self,
        inputs: Mapping[str, Array],
        *,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        deadline: float | None = None,
    ) -> Prediction:
        """As `predict`, without blocking the event loop.

        A caller that is cancelled takes its request out of the queue.
        """
        future, answered_by = self._submit(inputs, signature, version, label, deadline)
        try:
            outputs = await self._awaiter.result(future, deadline=deadline)
        except TimeoutError:
            raise _too_late() from None
        return Prediction(outputs, answered_by)

    def status(self, version: int | None = None) -> list[VersionStatus]:
        """States, newest version first; those of unloaded versions are remembered as END.

        Raises:
          ServingError: NOT_FOUND: the version given, or any version at all, has never been seen.
        """
        if found := self._versions.states(version):
            return found
        which = "any versions" if version is None else f"version {version}"
        raise ServingError(Code.NOT_FOUND, f"Could not find {which} of model {self.name}")

    def metadata(self, *, version: int | None = None, label: str | None = None) -> Metadata:
        """Signatures of a loaded version.

        Raises:
          ServingError: NOT_FOUND or INVALID_ARGUMENT, as for `predict`.
        """
        served = self._versions.acquire(version, label)
        self._versions.release(served)
        return served.metadata

    def signatures(self, *, version: int | None = None, label: str | None = None) -> Any:
        """`metadata(...).signatures`."""
        return self.metadata(version=version, label=label).signatures

    def _submit(
        self,
        inputs: Mapping[str, Array],
        signature: str | None,
        version: int | None,
        label: str | None,
        deadline: float | None,
    ) -> tuple[Future[dict[str, Array]], int]:
        served = self._versions.acquire(version, label)
        try:
            if deadline is not None and time.monotonic() >= deadline:
                raise _too_late()
            future = served.submit(inputs, signature=signature, deadline=deadline)
        except BaseException:
            self._versions.release(served)
            raise
        future.add_done_callback(lambda _: self._versions.release(served))
        return future, served.version

    def _watch(self, signature: str, size: int, padding: int, seconds: float) -> None:
        if self._watcher is not None:
            self._watcher.batch(
                model=self.name, signature=signature, size=size, padding=padding, seconds=seconds
            )


def _too_late() -> ServingError:
    return ServingError(Code.DEADLINE_EXCEEDED, "Deadline exceeded")


def _seconds_left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
