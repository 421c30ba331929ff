"""Serves one model: loads the versions that are wanted, answers by them, unloads the others."""

import logging
import os
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from serving.errors import Code, ServingError
from serving.saved_model.versions import outdated, version_folders
from serving.server.awaiter import Awaiter
from serving.server.batching import Array, Arrays, BatchScheduler
from serving.server.loaded_version import LoadedVersion, Metadata
from serving.server.metrics import ServingMetrics
from serving.server.versions import (
    Fingerprint,
    HostOptions,
    State,
    VersionStates,
    VersionStatus,
    fingerprint,
    never_seen,
    not_found,
    unknown_label,
)

_log = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """What the model answered, and which version of it."""

    outputs: dict[str, Array]
    version: int


class ModelHost:
    """One model name, whose versions come and go; every method is thread-safe.

    A thread polls the base path. A new version is loaded and warmed up first and only then answers;
    the one it replaces is unloaded once no label points to it and its last request has ended. A
    version that cannot be loaded ends with an error in its status, the others go on; it is tried
    again when its files change. While the base path cannot be read, everything stays as it is.

    Example:
      state = ServerState({"siamese": ModelSetup(Path("output/serving_model/siamese"))})
      state.start()
      host = state.host("siamese")
      host.wait_available(60)
      vectors = host.predict({"image": np.array([png])}, signature="embed").outputs["embedding"]

    Args:
      name: as in requests.
      base_path: folder of the version folders.
      options: see `HostOptions`.
      scheduler: the threads in which versions run, shared with other models.
      metrics: counts batches.
    """

    def __init__(
        self,
        name: str,
        base_path: Path,
        *,
        options: HostOptions,
        scheduler: BatchScheduler,
        metrics: ServingMetrics,
    ) -> None:
        self.name = name
        self.base_path = base_path
        self.options = options
        self._scheduler = scheduler
        self._metrics = metrics
        self._awaiter: Awaiter[dict[str, Array]] = Awaiter()
        # Guards everything below; notified when a version comes, goes or fails.
        self._changed = threading.Condition()
        self._loaded: dict[int, LoadedVersion] = {}
        self._draining: list[LoadedVersion] = []
        self._states = VersionStates()
        self._failed: dict[int, Fingerprint] = {}
        self._settled = False
        self._closing = False
        self._thread = threading.Thread(target=self._manage, name=f"versions-{name}", daemon=True)

    def start(self) -> None:
        """Begins to poll; returns at once (see `wait_available`)."""
        self._thread.start()

    def update(self, options: HostOptions) -> None:
        """Changes policy or labels; takes effect at once, loading excepted."""
        with self._changed:
            self.options = options
            self._settled = False
            self._changed.notify_all()

    def close(self) -> None:
        """Refuses new requests, finishes those under way and unloads every version."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

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
        inputs: Arrays,
        *,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
    ) -> Prediction:
        """Runs a signature, merged with other requests of the moment; blocks until it is done.

        Args:
          inputs: by input name; dimension 0 is the batch; strings as `bytes` in object arrays.
          signature: `serving_default` unless given.
          version: the newest loaded one unless given.
          label: instead of `version`.

        Raises:
          ServingError: with TF Serving's code and message. NOT_FOUND: no such version is loaded;
            FAILED_PRECONDITION: no such signature; INVALID_ARGUMENT: unknown label, wrong inputs,
            or the graph refuses the values; RESOURCE_EXHAUSTED: the queue is full; UNAVAILABLE: the
            server is shutting down.
        """
        future, answered_by = self._submit(inputs, signature, version, label, None)
        return Prediction(future.result(), answered_by)

    async def predict_async(
        self,
        inputs: Arrays,
        *,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        deadline: float | None = None,
    ) -> Prediction:
        """As `predict`, without blocking the event loop.

        A caller that is cancelled takes its request out of the queue; so does the `deadline`, an
        instant of `time.monotonic()` (DEADLINE_EXCEEDED).
        """
        future, answered_by = self._submit(inputs, signature, version, label, deadline)
        try:
            outputs = await self._awaiter.result(future, deadline=deadline)
        except TimeoutError:
            raise ServingError(Code.DEADLINE_EXCEEDED, "Deadline exceeded") from None
        return Prediction(outputs, answered_by)

    def _submit(
        self,
        inputs: Arrays,
        signature: str | None,
        version: int | None,
        label: str | None,
        deadline: float | None,
    ) -> tuple[Future[dict[str, Array]], int]:
        served = self.acquire(version, label)
        try:
            future = served.submit(inputs, signature=signature, deadline=deadline)
        except BaseException:
            self.release(served)
            raise
        future.add_done_callback(lambda _: self.release(served))
        return future, served.version

    def metadata(self, *, version: int | None = None, label: str | None = None) -> Metadata:
        """Signatures of a loaded version.

        Raises:
          ServingError: NOT_FOUND or INVALID_ARGUMENT, as for `predict`.
        """
        served = self.acquire(version, label)
        self.release(served)
        return served.metadata

    def status(self, version: int | None = None) -> list[VersionStatus]:
        """States, newest version first; those of unloaded versions are remembered as END.

        Raises:
          ServingError: NOT_FOUND: the version given, or any version at all, has never been seen.
        """
        with self._changed:
            if found := self._states.of(version):
                return found
        raise never_seen(self.name, version)

    def acquire(self, version: int | None, label: str | None) -> LoadedVersion:
        """A loaded version that is not unloaded before `release`; the newest unless asked for.

        Raises:
          ServingError: NOT_FOUND: it is not loaded; INVALID_ARGUMENT: there is no such label;
            UNAVAILABLE: everything is being unloaded.
        """
        with self._changed:
            if self._closing:
                raise ServingError(Code.UNAVAILABLE, "The server is shutting down")
            if label is not None:
                if label not in self.options.labels:
                    raise unknown_label(label)
                version = self.options.labels[label]
            chosen = max(self._loaded, default=None) if version is None else version
            if chosen is None or chosen not in self._loaded:
                raise not_found(self.name, version)
            served = self._loaded[chosen]
            served.requests += 1
            return served

    def release(self, served: LoadedVersion) -> None:
        """Ends what `acquire` began."""
        with self._changed:
            served.requests -= 1
            if not served.requests and served in self._draining:
                self._changed.notify_all()

    def _manage(self) -> None:
        """Body of the thread that loads and unloads."""
        while True:
            again = False
            try:
                self._poll()
                self._unload_drained()
                again = not self._settled
            except Exception:
                # The serving versions must outlive whatever the file system comes up with.
                _log.exception("%s: looking for versions failed", self.name)
            with self._changed:
                if self._closing:
                    break
                # A version to unload, an update or the end interrupts the wait.
                if not again:
                    self._changed.wait(self.options.poll_seconds)
        self._unload_all()

    def _poll(self) -> None:
        options = self.options
        try:
            folders = version_folders(self.base_path)
        except OSError as error:
            if not self._settled:
                _log.warning("%s: cannot read %s: %s", self.name, self.base_path, error)
            self._settle(options)
            return
        if not folders and not self._settled:
            _log.warning("%s: no versions under %s", self.name, self.base_path)
        wanted = options.policy.choose(folders)
        for version in self._failed.keys() - wanted:
            del self._failed[version]
        to_load = [
            version
            for version in sorted(wanted - self._loaded.keys())
            if self._failed.get(version) != fingerprint(folders[version])
        ]
        # All at once, as TF Serving announces them, then one after the other.
        with self._changed:
            for version in to_load:
                self._states.set(version, State.START)
        for version in to_load:
            if self._closing:
                return
            self._load(version, folders[version], options)
        # A version goes after the label that points to it, not before: a reload moves labels last.
        labelled = folders.keys() & set(options.labels.values())
        with self._changed:
            self._drop_unwanted(wanted | labelled)
        self._settle(options)

    def _settle(self, options: HostOptions) -> None:
        with self._changed:
            self._settled = options is self.options
            self._changed.notify_all()

    def _load(self, version: int, folder: Path, options: HostOptions) -> None:
        with self._changed:
            self._states.set(version, State.LOADING)
        # Taken before the load: files that change meanwhile are reason enough to try again.
        before = fingerprint(folder)
        begin = time.monotonic()
        try:
            served = LoadedVersion(
                folder,
                version,
                name=self.name,
                metrics=self._metrics,
                scheduler=self._scheduler,
                options=options,
            )
        except Exception as error:
            code, message = _load_error(error, folder)
            _log.error("%s: version %d cannot be served: %s", self.name, version, message)
            with self._changed:
                self._failed[version] = before
                self._states.set(version, State.END, code=code, message=message)
                self._changed.notify_all()
            return
        _log.info(
            "%s: version %d is available after %.1f s (%d warm-up requests)",
            self.name,
            version,
            time.monotonic() - begin,
            served.warmup_requests,
        )
        if lacking := outdated(folder):
            _log.warning(
                "%s: version %d needs a new export, which %s: `oneshot run`",
                self.name,
                version,
                lacking,
            )
        with self._changed:
            self._failed.pop(version, None)
            self._loaded[version] = served
            self._states.set(version, State.AVAILABLE)
            self._changed.notify_all()

    def _drop_unwanted(self, wanted: set[int]) -> None:
        """Stops serving what is not wanted; under the lock.

        While nothing that is wanted can be served, the old versions are better than none.
        """
        if wanted and not wanted & self._loaded.keys():
            return
        for version in sorted(self._loaded.keys() - wanted):
            self._draining.append(self._loaded.pop(version))
            self._states.set(version, State.UNLOADING)

    def _unload_drained(self) -> None:
        with self._changed:
            drained = [served for served in self._draining if not served.requests]
            self._draining = [served for served in self._draining if served.requests]
        for served in drained:
            served.unload()
            _log.info("%s: version %d is unloaded", self.name, served.version)
            with self._changed:
                self._states.set(served.version, State.END)
                self._changed.notify_all()

    def _unload_all(self) -> None:
        with self._changed:
            self._drop_unwanted(set())
            self._changed.notify_all()
        while True:
            self._unload_drained()
            with self._changed:
                if not self._draining:
                    return
                self._changed.wait_for(lambda: any(not s.requests for s in self._draining))


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
