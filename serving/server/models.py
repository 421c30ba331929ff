"""The models of a server by name, and who watches its requests."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary

import numpy.typing as npt

from serving.errors import Code, ServingError
from serving.server.batching import BatchScheduler
from serving.server.loaded_version import Metadata
from serving.server.versions import HostOptions, State, VersionManager, VersionStatus, not_found

Result = TypeVar("Result")


class Awaiter(Generic[Result]):
    """Awaits futures that other threads settle, several at a time.

    `asyncio.wrap_future` wakes the loop for each of them. A wake-up is a system call, during which
    the two threads fight for the interpreter: for a batch of requests that takes longer than their
    answers do.
    """

    def __init__(self) -> None:
        self._inboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Inbox] = WeakKeyDictionary()

    async def result(self, future: Future[Result], *, deadline: float | None) -> Result:
        """What `future` holds once it is settled; it is cancelled if nobody waits any longer.

        Args:
          deadline: an instant of `time.monotonic()`.

        Raises:
          TimeoutError: the deadline has passed.
          Exception: that of the future.
        """
        loop = asyncio.get_running_loop()
        inbox = self._inboxes.get(loop)
        if inbox is None:
            inbox = self._inboxes[loop] = _Inbox(loop)
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        deliver = inbox.put
        future.add_done_callback(lambda _: deliver(wake))
        timer = None
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - time.monotonic()), wake)
        try:
            await waiter
            if not future.done():
                raise TimeoutError
            return future.result()
        finally:
            if timer is not None:
                timer.cancel()
            future.cancel()


class _Inbox:
    """What an event loop is to call for other threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._told = False

    def put(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        # After the append, so that whoever empties the inbox meanwhile finds it or is told again.
        if not self._told and not self._loop.is_closed():
            self._told = True
            self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._told = False
        while self._calls:
            self._calls.popleft()()


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


_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Told of everything that is worth counting; called from any thread, must not block."""

    def request(
        self, *, model: str, method: str, entry_point: str, code: Code, seconds: float
    ) -> None:
        """A request was answered.

        Args:
          model: name as asked for; may be one that does not exist.
          method: `Predict`, `GetModelMetadata`, ...
          entry_point: `GRPC` or `REST`.
          code: `Code.OK` or what went wrong.
          seconds: from arrival to answer.
        """

    def batch(self, *, model: str, signature: str, size: int, padding: int, seconds: float) -> None:
        """A merged batch of `size` rows (`padding` more of them filler) ran for `seconds`."""


class NoObserver:
    """Counts nothing."""

    def request(
        self, *, model: str, method: str, entry_point: str, code: Code, seconds: float
    ) -> None:
        """Ignored."""

    def batch(self, *, model: str, signature: str, size: int, padding: int, seconds: float) -> None:
        """Ignored."""


@dataclass(frozen=True)
class ModelSetup:
    """A model to serve: where its versions are, and how they are served."""

    base_path: Path
    options: HostOptions


class ServerState:
    """All models of a server.

    Attributes:
      observer: `NoObserver()` unless the server counts.
      closing: true once the server shuts down; new requests are answered UNAVAILABLE.

    Args:
      hosts: by model name; closed with this object.
      observer: see `Observer`.
      scheduler: threads of the hosts that a reload makes; closed with this object. Hosts have
        their own unless given.
      labels_may_wait: whether a reload may give a label to a version that is not loaded yet.
    """

    def __init__(
        self,
        hosts: Mapping[str, ModelHost],
        *,
        observer: Observer | None = None,
        scheduler: BatchScheduler | None = None,
        labels_may_wait: bool = False,
    ) -> None:
        self._hosts = dict(hosts)
        self.observer: Observer = observer or NoObserver()
        self.closing = False
        self._scheduler = scheduler
        self._labels_may_wait = labels_may_wait
        self._reloading = threading.Lock()

    @property
    def hosts(self) -> Mapping[str, ModelHost]:
        """By model name; a reload replaces the mapping."""
        return self._hosts

    def host(self, name: str, *, version: int | None = None, label: str | None = None) -> ModelHost:
        """The model of that name; version and label serve the error message only.

        Raises:
          ServingError: NOT_FOUND, "Servable not found for request: Latest(NAME)";
            INVALID_ARGUMENT: the name is empty, or a label of an unknown model is asked for.
        """
        if not name:
            raise ServingError(Code.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        host = self._hosts.get(name)
        if host is not None:
            return host
        if label is not None:
            raise ServingError(
                Code.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}"
            )
        raise not_found(name, version)

    def start(self) -> None:
        """Begins to load every model; see `wait_available`."""
        for host in self._hosts.values():
            host.start()

    def wait_available(self, timeout: float | None = None) -> bool:
        """Whether each model has a version to answer with before `timeout` seconds are over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return all(
            host.wait_available(None if deadline is None else max(0.0, deadline - time.monotonic()))
            for host in self._hosts.values()
        )

    def close(self) -> None:
        """Finishes the requests under way and unloads everything."""
        self.closing = True
        for host in self._hosts.values():
            host.close()
        if self._scheduler is not None:
            self._scheduler.close()

    def reload(self, models: Mapping[str, ModelSetup], *, timeout: float = 300.0) -> None:
        """Serves these models instead, without a gap for those that stay.

        Returns once the versions asked for are loaded. Models are replaced even if one of them
        cannot be loaded; labels then stay as they were.

        Args:
          models: all of them; one that is not among them is unloaded.
          timeout: seconds to wait for the loading.

        Raises:
          ServingError: UNKNOWN: a model has no version to answer with; FAILED_PRECONDITION: a
            label points at a version that is not loaded.
        """
        with self._reloading:
            before = dict(self._hosts)
            hosts: dict[str, ModelHost] = {}
            for name, setup in models.items():
                host = before.get(name)
                if host is not None and host.base_path == setup.base_path:
                    # The labels change last, when what they point at is known to be there.
                    host.update(replace(setup.options, labels=host.options.labels))
                else:
                    host = self._new_host(name, setup)
                hosts[name] = host
            deadline = time.monotonic() + timeout
            for host in hosts.values():
                host.wait_settled(max(0.0, deadline - time.monotonic()))
            self._hosts = hosts
            for name, host in before.items():
                if hosts.get(name) is not host:
                    host.close()
            silent = [name for name, host in hosts.items() if not host.wait_available(0)]
            if silent:
                raise ServingError(
                    Code.UNKNOWN, f"Some models did not become available: {{{', '.join(silent)}}}"
                )
            for name, setup in models.items():
                self._check_labels(hosts[name], setup.options)
            for name, setup in models.items():
                hosts[name].update(setup.options)

    def _new_host(self, name: str, setup: ModelSetup) -> ModelHost:
        host = ModelHost(
            name,
            setup.base_path,
            options=replace(setup.options, labels={}),
            scheduler=self._scheduler,
            watcher=self.observer,
        )
        _log.info("(Re-)adding model %s from %s", name, setup.base_path)
        host.start()
        return host

    def _check_labels(self, host: ModelHost, options: HostOptions) -> None:
        available = {s.version for s in host.status() if s.state is State.AVAILABLE}
        for label, version in options.labels.items():
            unchanged = host.options.labels.get(label, version) == version
            if self._labels_may_wait and unchanged:
                continue
            # One that only its old label still keeps loaded is about to go.
            if version not in options.policy.choose(available):
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {host.name}, which is "
                    "not currently available for inference",
                )
