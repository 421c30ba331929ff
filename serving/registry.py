"""The models of a server by name, and who watches its requests."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from serving.batching import BatchScheduler
from serving.errors import Code, ServingError
from serving.servable import HostOptions, ModelHost, State
from serving.version_manager import not_found

_LOGGER = logging.getLogger(__name__)


class Observer(Protocol):
    """Told of everything that is worth counting; called from any thread, must not block."""

    def request(
        self, *, model: str, method: str, entry_point: str, code: Code, seconds: float
    ) -> None:
        """A request was answered.

        Args:
          model: name as asked for; may be one that does not exist.
          method: `Predict`, `Classify`, `Regress`, `MultiInference`, `GetModelMetadata`, ...
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
        _LOGGER.info("(Re-)adding model %s from %s", name, setup.base_path)
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
