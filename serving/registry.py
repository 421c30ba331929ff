"""The models of a server by name, and who watches its requests."""

from collections.abc import Mapping
from typing import Protocol

from serving.errors import Code
from serving.servable import ModelHost


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
          seconds: from arrival to answer.
        """

    def batch(self, *, model: str, signature: str, size: int, padding: int, seconds: float) -> None:
        """A merged batch of `size` rows (`padding` of them filler) ran for `seconds`."""


class NoObserver:
    """Counts nothing."""

    def request(
        self, *, model: str, method: str, entry_point: str, code: Code, seconds: float
    ) -> None:
        pass

    def batch(self, *, model: str, signature: str, size: int, padding: int, seconds: float) -> None:
        pass


class ServerState:
    """All models of a server.

    Attributes:
      observer: `NoObserver()` unless the server counts.
      closing: true once the server shuts down; new requests are answered UNAVAILABLE.
    """

    def __init__(self, hosts: Mapping[str, ModelHost], *, observer: Observer | None = None) -> None:
        self._hosts = dict(hosts)
        self.observer: Observer = observer or NoObserver()
        self.closing = False

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
        raise NotImplementedError
