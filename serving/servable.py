"""One model by name: its versions, loaded, served and dropped without a gap."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
from tensorflow_serving.apis import get_model_metadata_pb2

from serving.errors import Code

Array = npt.NDArray[Any]


class State(enum.IntEnum):
    """Where a version is in its life; the numbers are those of `ModelVersionStatus.State`."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """State of a version; `code` and `message` say why one that could not be loaded ended."""

    version: int
    state: State
    code: Code = Code.OK
    message: str = ""


class Prediction(NamedTuple):
    """What the model answered, and which version of it."""

    outputs: dict[str, Array]
    version: int


class Metadata(NamedTuple):
    """Signatures of one version. The proto is shared by all callers: read only."""

    version: int
    signatures: get_model_metadata_pb2.SignatureDefMap


@dataclass(frozen=True)
class HostOptions:
    """How a model's versions are found and served."""

    poll_seconds: float = 1.0
    labels: Mapping[str, int] = field(default_factory=dict)


class ModelHost:
    """One model name: polls its base path, serves the versions that its policy asks for.

    Every method is thread-safe.
    """

    def __init__(self, name: str, base_path: Path, *, options: HostOptions) -> None:
        self.name = name
        self.base_path = base_path
        self.options = options

    def start(self) -> None:
        """Begins to poll; returns at once (see `wait_available`)."""
        raise NotImplementedError

    def close(self) -> None:
        """Finishes the requests under way and unloads every version."""
        raise NotImplementedError

    def wait_available(self, timeout: float | None = None) -> bool:
        """Whether a version is AVAILABLE before `timeout` seconds are over."""
        raise NotImplementedError

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
        raise NotImplementedError

    async def predict_async(
        self,
        inputs: Mapping[str, Array],
        *,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        deadline: float | None = None,
    ) -> Prediction:
        """As `predict`, without blocking the event loop."""
        raise NotImplementedError

    def status(self, version: int | None = None) -> list[VersionStatus]:
        """States, newest version first; those of unloaded versions are remembered as END.

        Raises:
          ServingError: NOT_FOUND: the version given has never been seen.
        """
        raise NotImplementedError

    def metadata(self, *, version: int | None = None, label: str | None = None) -> Metadata:
        """Signatures of a loaded version.

        Raises:
          ServingError: NOT_FOUND or INVALID_ARGUMENT, as for `predict`.
        """
        raise NotImplementedError

    def signatures(
        self, *, version: int | None = None, label: str | None = None
    ) -> get_model_metadata_pb2.SignatureDefMap:
        """`metadata(...).signatures`."""
        return self.metadata(version=version, label=label).signatures
