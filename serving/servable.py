"""One model by name: its versions, loaded, served and dropped without a gap."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from serving.batching import BatchingOptions, BatchScheduler
from serving.errors import Code, ServingError
from serving.loaded_version import LoadedVersion, Metadata, load_version
from serving.version_states import State, VersionStates, VersionStatus
from serving.versions import Latest, Policy, fingerprint, version_folders

__all__ = ["HostOptions", "Metadata", "ModelHost", "Prediction", "State", "VersionStatus"]

_LOGGER = logging.getLogger(__name__)

Array = npt.NDArray[Any]


class Prediction(NamedTuple):
    """What the model answered, and which version of it."""

    outputs: dict[str, Array]
    version: int


class BatchWatcher(Protocol):
    """Told of the batches that ran; called from the threads that run them."""

    def batch(self, *, model: str, signature: str, size: int, padding: int, seconds: float) -> None:
        """A merged batch of `size` rows, `padding` rows of filler not counted, ran."""


@dataclass(frozen=True)
class HostOptions:
    """How a model's versions are found and served.

    Attributes:
      policy: which of the versions under the base path are served.
      poll_seconds: between two looks at the base path.
      labels: version by label. A label answers as soon as its version is loaded.
      warmup: whether warm-up requests are replayed before a version is served.
      batching: how requests are merged.
    """

    policy: Policy = field(default_factory=Latest)
    poll_seconds: float = 1.0
    labels: Mapping[str, int] = field(default_factory=dict)
    warmup: bool = True
    batching: BatchingOptions = field(default_factory=BatchingOptions)


class ModelHost:
    """One model name: polls its base path, serves the versions that its policy asks for.

    A new version is loaded and warmed up first and only then answers; the one it replaces is
    unloaded once its last request has ended. A version that cannot be loaded ends with an error in
    its status, the others go on; it is tried again when its files change. While the base path
    cannot be read, everything stays as it is.

    Every method is thread-safe.

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
        self._options = options
        self._own_scheduler = scheduler is None
        self._scheduler = scheduler or BatchScheduler(options.batching.num_batch_threads)
        self._watcher = watcher
        self._changed = threading.Condition()
        self._loaded: dict[int, LoadedVersion] = {}
        self._draining: list[LoadedVersion] = []
        self._states = VersionStates()
        self._failed: dict[int, tuple[tuple[str, int, int], ...]] = {}
        self._settled = False
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def options(self) -> HostOptions:
        """As given, or as last updated."""
        return self._options

    def start(self) -> None:
        """Begins to poll; returns at once (see `wait_available`)."""
        self._thread = threading.Thread(
            target=self._manage, name=f"versions-{self.name}", daemon=True
        )
        self._thread.start()

    def update(self, options: HostOptions) -> None:
        """Changes policy or labels; takes effect at once, loading excepted."""
        with self._changed:
            self._options = options
            self._settled = False
            self._changed.notify_all()

    def close(self) -> None:
        """Refuses new requests, finishes those under way and unloads every version."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._own_scheduler:
            self._scheduler.close()

    def wait_available(self, timeout: float | None = None) -> bool:
        """Whether a version is AVAILABLE before `timeout` seconds are over."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._loaded) or self._closing, timeout)
            return bool(self._loaded)

    def wait_settled(self, timeout: float | None = None) -> bool:
        """Whether every version asked for has been loaded, or has failed, within `timeout`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._settled or self._closing, timeout)

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
            wrapped = asyncio.wrap_future(future)
            if deadline is None:
                return Prediction(await wrapped, answered_by)
            return Prediction(await asyncio.wait_for(wrapped, _seconds_left(deadline)), answered_by)
        # Not the same class before Python 3.11.
        except (TimeoutError, asyncio.TimeoutError):
            raise _too_late() from None

    def status(self, version: int | None = None) -> list[VersionStatus]:
        """States, newest version first; those of unloaded versions are remembered as END.

        Raises:
          ServingError: NOT_FOUND: the version given, or any version at all, has never been seen.
        """
        with self._changed:
            found = self._states.of(version)
        if found:
            return found
        raise ServingError(
            Code.NOT_FOUND,
            f"Could not find any versions of model {self.name}"
            if version is None
            else f"Could not find version {version} of model {self.name}",
        )

    def metadata(self, *, version: int | None = None, label: str | None = None) -> Metadata:
        """Signatures of a loaded version.

        Raises:
          ServingError: NOT_FOUND or INVALID_ARGUMENT, as for `predict`.
        """
        with self._changed:
            return self._find(version, label).metadata

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
        with self._changed:
            served = self._find(version, label)
            served.requests += 1  # from here on it is not unloaded under the request

        def release(_: object = None) -> None:
            with self._changed:
                served.requests -= 1
                if not served.requests and served in self._draining:
                    self._changed.notify_all()

        try:
            if deadline is not None and time.monotonic() >= deadline:
                raise _too_late()
            future = served.submit(inputs, signature=signature, deadline=deadline)
        except BaseException:
            release()
            raise
        future.add_done_callback(release)
        return future, served.version

    def _find(self, version: int | None, label: str | None) -> LoadedVersion:
        """The version to answer; under the lock."""
        if self._closing:
            raise ServingError(Code.UNAVAILABLE, "The server is shutting down")
        if label is not None:
            if label not in self._options.labels:
                raise ServingError(
                    Code.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}"
                )
            version = self._options.labels[label]
        chosen = max(self._loaded, default=None) if version is None else version
        if chosen is None or chosen not in self._loaded:
            raise not_found(self.name, version)
        return self._loaded[chosen]

    def _manage(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    break
            updated = False
            try:
                self._poll()
                self._unload_drained()
                updated = not self._settled
            except Exception:
                # The serving versions must outlive whatever the file system comes up with.
                _LOGGER.exception("%s: looking for versions failed", self.name)
            with self._changed:
                # A version to unload, an update or the end interrupts the wait.
                if not (self._closing or updated):
                    self._changed.wait(self._options.poll_seconds)
        self._drop_all()

    def _poll(self) -> None:
        try:
            folders = version_folders(self.base_path)
        except OSError as error:
            with self._changed:
                if not self._settled:
                    _LOGGER.warning("%s: cannot read %s: %s", self.name, self.base_path, error)
                self._settled = True
                self._changed.notify_all()
            return
        with self._changed:
            options = self._options
            aspired = options.policy.choose(folders)
            for version in set(self._failed) - aspired:
                del self._failed[version]
            missing = [v for v in sorted(aspired) if v not in self._loaded]
        if not folders and not self._settled:
            _LOGGER.warning("%s: no versions under %s", self.name, self.base_path)
        to_load = [v for v in missing if self._failed.get(v) != fingerprint(folders[v])]
        # All at once, as TF Serving announces them, then one after the other.
        with self._changed:
            for version in to_load:
                self._states.set(version, State.START)
        for version in to_load:
            if self._closing:
                return
            self._load(version, folders[version], options)
        with self._changed:
            self._drop_unwanted(aspired)
            self._settled = options is self._options
            self._changed.notify_all()

    def _load(self, version: int, folder: Path, options: HostOptions) -> None:
        with self._changed:
            self._states.set(version, State.LOADING)
        # Taken before the load: files that change meanwhile are reason enough to try again.
        before = fingerprint(folder)
        begin = time.monotonic()
        try:
            served = load_version(
                folder,
                version,
                scheduler=self._scheduler,
                batching=options.batching,
                warmup=options.warmup,
                watch=self._watch,
            )
        except Exception as error:
            code, message = _load_error(error, folder)
            _LOGGER.error("%s: version %d cannot be served: %s", self.name, version, message)
            with self._changed:
                self._failed[version] = before
                self._states.set(version, State.END, code=code, message=message)
                self._changed.notify_all()
            return
        _LOGGER.info(
            "%s: version %d is available after %.1f s (%d warm-up requests)",
            self.name,
            version,
            time.monotonic() - begin,
            served.warmup_requests,
        )
        with self._changed:
            self._failed.pop(version, None)
            self._loaded[version] = served
            self._states.set(version, State.AVAILABLE)
            self._changed.notify_all()

    def _watch(self, signature: str, size: int, padding: int, seconds: float) -> None:
        if self._watcher is not None:
            self._watcher.batch(
                model=self.name, signature=signature, size=size, padding=padding, seconds=seconds
            )

    def _drop_unwanted(self, aspired: set[int]) -> None:
        """Stops serving what is no longer asked for; under the lock.

        While nothing that is asked for can be served, the old versions are better than none.
        """
        if aspired and not aspired & self._loaded.keys():
            return
        for version in sorted(self._loaded.keys() - aspired):
            self._draining.append(self._loaded.pop(version))
            self._states.set(version, State.UNLOADING)

    def _unload_drained(self) -> None:
        with self._changed:
            drained = [served for served in self._draining if not served.requests]
            self._draining = [served for served in self._draining if served.requests]
        for served in drained:
            served.unload()
            _LOGGER.info("%s: version %d is unloaded", self.name, served.version)
            with self._changed:
                self._states.set(served.version, State.END)
                self._changed.notify_all()

    def _drop_all(self) -> None:
        with self._changed:
            self._drop_unwanted(set())
            self._changed.notify_all()
        while True:
            self._unload_drained()
            with self._changed:
                if not self._draining:
                    return
                self._changed.wait_for(lambda: any(not s.requests for s in self._draining))


def not_found(name: str, version: int | None = None) -> ServingError:
    """TF Serving's answer to a model or version that it does not serve."""
    wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return ServingError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")


def _too_late() -> ServingError:
    return ServingError(Code.DEADLINE_EXCEEDED, "Deadline exceeded")


def _seconds_left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _load_error(error: Exception, folder: Path) -> tuple[Code, str]:
    """For the status, without the server's paths."""
    code = Code.UNKNOWN
    if isinstance(error, ServingError):
        code = error.code
    elif isinstance(error, FileNotFoundError):
        code = Code.NOT_FOUND
    elif isinstance(number := getattr(error, "error_code", None), int) and 0 < number <= 16:
        code = Code(number)
    text = getattr(error, "message", "") or str(error) or type(error).__name__
    return code, text.replace(str(folder.parent) + os.sep, "")
