"""What a client raises, the same for REST and gRPC."""

from typing import ClassVar, Final

from serving.errors import Code, ServingError


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


_CLASSES: Final[dict[Code, type[ClientError]]] = {
    Code.INVALID_ARGUMENT: InvalidRequest,
    Code.FAILED_PRECONDITION: InvalidRequest,
    Code.OUT_OF_RANGE: InvalidRequest,
    Code.NOT_FOUND: NotFound,
    Code.UNAUTHENTICATED: Unauthorized,
    Code.PERMISSION_DENIED: Unauthorized,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.UNAVAILABLE: Unavailable,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
}

_HTTP_CODES: Final[dict[int, Code]] = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    409: Code.ABORTED,
    413: Code.OUT_OF_RANGE,  # the body is larger than the server takes
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,  # a proxy that does not reach its server
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


def error_of_code(code: Code, message: str, *, retry_after: float | None = None) -> ClientError:
    """The exception of a canonical code."""
    return _CLASSES.get(code, ServerError)(message, code=code, retry_after=retry_after)


def error_of_http(status: int, message: str, *, retry_after: float | None = None) -> ClientError:
    """The exception of an HTTP status that is not 2xx."""
    code = _HTTP_CODES.get(status)
    if code is None:
        code = Code.INVALID_ARGUMENT if 400 <= status < 500 else Code.UNKNOWN
        message = f"HTTP {status}: {message}"
    return error_of_code(code, message, retry_after=retry_after)


def is_retryable(error: ClientError) -> bool:
    """Whether the same request may succeed a little later."""
    return isinstance(error, (Unavailable, Overloaded))
