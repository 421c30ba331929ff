"""All models of a server by name: what both protocols ask, and what a reload replaces."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tensorflow_serving.apis import get_model_status_pb2

from serving.errors import Code, ServingError, invalid
from serving.server.batching import BatchScheduler
from serving.server.metrics import ServingMetrics
from serving.server.model_host import ModelHost
from serving.server.versions import HostOptions, State, never_seen, not_found, unknown_label

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSetup:
    """A model to serve: where its versions are, and how they are served."""

    base_path: Path
    options: HostOptions = field(default_factory=HostOptions)


class ServerState:
    """All models of a server, and what is counted about them.

    Attributes:
      hosts: by model name; a reload replaces the mapping.
      metrics: counts requests and batches.
      defaults: options of the first model, for what a reloaded configuration says nothing about.
      closing: true once the server shuts down; new requests are answered UNAVAILABLE.

    Args:
      models: by name. All share the threads that the first one asks for.
      labels_may_wait: whether a reload may give a label to a version that is not loaded yet.
    """

    def __init__(self, models: Mapping[str, ModelSetup], *, labels_may_wait: bool = False) -> None:
        first = next(iter(models.values()), None)
        self.defaults = HostOptions() if first is None else replace(first.options, labels={})
        self.metrics = ServingMetrics(models)
        self.closing = False
        self._labels_may_wait = labels_may_wait
        self._scheduler = BatchScheduler(self.defaults.batching.num_batch_threads)
        self._reloading = threading.Lock()
        self.hosts: Mapping[str, ModelHost] = {
            name: self._new_host(name, setup.base_path, setup.options)
            for name, setup in models.items()
        }

    def host(self, name: str, *, version: int | None = None, label: str | None = None) -> ModelHost:
        """The model of that name; version and label serve the error message only.

        Raises:
          ServingError: NOT_FOUND, "Servable not found for request: Latest(NAME)";
            INVALID_ARGUMENT: the name is empty, or a label of an unknown model is asked for.
        """
        if not name:
            raise invalid("ModelSpec has no name specified.")
        host = self.hosts.get(name)
        if host is not None:
            return host
        raise not_found(name, version) if label is None else unknown_label(label)

    def status(
        self, name: str, version: int | None = None
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """States of a model's versions, newest first, or of the one given.

        Raises:
          ServingError: NOT_FOUND: there is no such model, or it never had such a version.
        """
        host = self.hosts.get(name)
        if host is None:
            raise never_seen(name, version)
        states = host.status(version)
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=states)

    def start(self) -> None:
        """Begins to load every model; see `ModelHost.wait_available`."""
        for host in self.hosts.values():
            host.start()

    def close(self) -> None:
        """Finishes the requests under way and unloads everything."""
        self.closing = True
        for host in self.hosts.values():
            host.close()
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
            before = self.hosts
            hosts: dict[str, ModelHost] = {}
            for name, setup in models.items():
                host = before.get(name)
                if host is not None and host.base_path == setup.base_path:
                    # The labels change last, when what they point at is known to be there.
                    host.update(replace(setup.options, labels=host.options.labels))
                else:
                    host = self._new_host(name, setup.base_path, replace(setup.options, labels={}))
                    _log.info("(Re-)adding model %s from %s", name, setup.base_path)
                    host.start()
                hosts[name] = host
            deadline = time.monotonic() + timeout
            for host in hosts.values():
                host.wait_settled(max(0.0, deadline - time.monotonic()))
            self.hosts = hosts
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

    def _new_host(self, name: str, base_path: Path, options: HostOptions) -> ModelHost:
        return ModelHost(
            name, base_path, options=options, scheduler=self._scheduler, metrics=self.metrics
        )

    def _check_labels(self, host: ModelHost, options: HostOptions) -> None:
        available = {s.version for s in host.status() if s.state == State.AVAILABLE}
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
