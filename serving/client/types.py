"""What clients take, give and raise, and the requests that their calls are made of."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from serving.errors import Code, ServingError, reason_of


class ClientError(ServingError):
    """A request that was not answered.

    Attributes:
      code: the canonical code, whatever the protocol.
      message: what the server, or the client itself, says about it.
      retry_after: seconds the server asks to wait, None if it does not say.
    """

    default_code: ClassVar[Code] = Code.UNKNOWN

    def __init__(
        self, message: str, *, code: Code | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(code or self.default_code, message)
        self.retry_after = retry_after


class InvalidRequest(ClientError):
    """The request is wrong and will be wrong again: a bad image, an unknown signature or label."""

    default_code = Code.INVALID_ARGUMENT


class InvalidImage(InvalidRequest, ValueError):
    """Not an image that can be sent. Raised before anything is."""


class InvalidSetting(ClientError, ValueError):
    """No client can be made: the address, or a variable of the environment, makes no sense."""

    default_code = Code.FAILED_PRECONDITION


class NotFound(ClientError):
    """The server does not have this model or version, or not yet."""

    default_code = Code.NOT_FOUND


class Unauthorized(ClientError):
    """The bearer token is missing, wrong, or not enough."""

    default_code = Code.UNAUTHENTICATED


class Overloaded(ClientError):
    """The server's queue is full (HTTP 429); retried until the deadline."""

    default_code = Code.RESOURCE_EXHAUSTED


class Unavailable(ClientError):
    """There is no server, or it is starting, stopping or cut off; retried until the deadline."""

    default_code = Code.UNAVAILABLE


class DeadlineExceeded(ClientError, TimeoutError):
    """No answer within the time given for the call, all retries counted."""

    default_code = Code.DEADLINE_EXCEEDED


class ServerError(ClientError):
    """The server failed, or answered something that is no answer."""

    default_code = Code.INTERNAL


_KINDS = (InvalidRequest, NotFound, Unauthorized, Overloaded, Unavailable, DeadlineExceeded)
_CLASSES: Final[Mapping[Code, type[ClientError]]] = {kind.default_code: kind for kind in _KINDS} | {
    Code.FAILED_PRECONDITION: InvalidRequest,
    Code.OUT_OF_RANGE: InvalidRequest,
    Code.PERMISSION_DENIED: Unauthorized,
}

# Of several codes that are answered with one status, the first, unless named below.
_HTTP_CODES: Final = {code.http: code for code in reversed(Code)} | {
    407: Code.UNAUTHENTICATED,  # a proxy asks for a password
    409: Code.ABORTED,
    413: Code.OUT_OF_RANGE,  # the body is larger than the server takes
    500: Code.INTERNAL,
    502: Code.UNAVAILABLE,  # a proxy that does not reach its server
}


def error_of_code(code: Code, message: str, *, retry_after: float | None = None) -> ClientError:
    """The exception of a canonical code."""
    error = _CLASSES.get(code, ServerError)
    return error(reason_of(message), code=code, retry_after=retry_after)


def error_of_http(status: int, message: str, *, retry_after: float | None = None) -> ClientError:
    """The exception of an HTTP status that is not 2xx."""
    code = _HTTP_CODES.get(status)
    if code is None:
        code = Code.INVALID_ARGUMENT if 400 <= status < 500 else Code.UNKNOWN
        message = f"HTTP {status}: {message}"
    return error_of_code(code, message, retry_after=retry_after)


Floats: TypeAlias = npt.NDArray[np.float32]
Inputs: TypeAlias = Mapping[str, "list[bytes] | Floats"]


class Scores(NamedTuple):
    """How alike N pairs are.

    Attributes:
      score: `float32[N]` in [0, 1]; 1 is certainly the same class.
      logit: `float32[N]`, of which `score` is the sigmoid.
    """

    score: Floats
    logit: Floats


class VersionStatus(NamedTuple):
    """A version of the model on the server.

    Attributes:
      state: START, LOADING, AVAILABLE, UNLOADING or END.
      code: what went wrong, `Code.OK` if nothing did.
      message: the same in words.
    """

    version: int
    state: str
    code: Code
    message: str

    def __str__(self) -> str:
        reason = "" if self.code is Code.OK else f" ({self.code.name}: {self.message})"
        return f"version {self.version} is {self.state}{reason}"


@dataclass(frozen=True)
class Target:
    """A model, and which of its versions: a number, a label, or neither for the newest."""

    model: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("a model needs a name")
        if self.version is not None and self.label is not None:
            raise ValueError("give a version or a label, not both")


@dataclass(frozen=True)
class Limits:
    """How much goes into one request; more is sent in several, in order."""

    images: int = 64
    bytes: int = 8 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.images < 1 or self.bytes < 1:
            raise ValueError("limits are at least 1")


@dataclass(frozen=True)
class Retries:
    """When to try again: exponential pauses, each drawn between zero and its longest ("full
    jitter"), so that clients cut off together do not come back together."""

    attempts: int = 10
    first_pause: float = 0.05
    longest_pause: float = 2.0

    def pause(self, attempt: int, *, retry_after: float | None) -> float:
        """Seconds to wait after the failure of `attempt`, which counts from 0."""
        longest = min(self.longest_pause, self.first_pause * 2.0**attempt)
        return max(random.uniform(0, longest), retry_after or 0.0)


@dataclass(frozen=True)
class Predict:
    """Calls a signature. Every input has N rows, and so has every output."""

    target: Target
    signature: str
    inputs: Inputs
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class GetStatus:
    """Asks for the states of the versions; answered by a list of `VersionStatus`."""

    target: Target


@dataclass(frozen=True)
class GetMetadata:
    """Asks for the signatures, which only a loaded version has; answered by its number."""

    target: Target


Request: TypeAlias = "Predict | GetStatus | GetMetadata"


class Deadline:
    """The moment when a call must be over, whatever it still has to do."""

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"a timeout is more than 0 seconds, not {seconds}")
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left.

        Raises:
          DeadlineExceeded: there are none.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"no answer within {self.seconds:g} s")
        return left


@dataclass(frozen=True)
class Tls:
    """Whom to trust and who the client is; all are PEM files.

    Attributes:
      ca: the authority of the server's certificate; None trusts those of the system.
      certificate: the client's own, where the server asks for one.
      key: its key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client certificate needs its key, and the key its certificate")
