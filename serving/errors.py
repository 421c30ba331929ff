"""The codes of failed requests that gRPC and TF Serving share, and the error that carries one."""

import enum
import re
from typing import Final


class Code(enum.IntEnum):
    """The canonical codes; a member's value is its number in gRPC, TensorFlow and TF Serving."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def http(self) -> int:
        """The HTTP status that TF Serving's REST API answers with."""
        return _HTTP[self]


_HTTP: Final = {
    Code.OK: 200,
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INTERNAL: 500,
    Code.DATA_LOSS: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}


class ServingError(Exception):
    """A request that is answered with an error.

    Attributes:
      code: never `Code.OK`.
      message: for the client; names nothing of the machine that the client has no business with.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def invalid(message: str) -> ServingError:
    """The error of a request that is wrong whatever the server does: INVALID_ARGUMENT."""
    return ServingError(Code.INVALID_ARGUMENT, message)


_PREAMBLE: Final = re.compile(
    r"Graph execution error:\s+|\d+ root error\(s\) found\.\s+\(0\) [\w ]+: "
)
_NODES: Final = re.compile(r"\n\t \[\[\{\{node .*", re.DOTALL)
_ASSERTION: Final = re.compile(r"assertion failed: \[(.*)\]", re.DOTALL)


def reason_of(message: str) -> str:
    """The words of a `tf.errors.OpError` without TensorFlow's: its preamble and names of nodes."""
    while (preamble := _PREAMBLE.match(message)) is not None:
        message = message[preamble.end() :]
    message = _NODES.sub("", message)
    assertion = _ASSERTION.fullmatch(message)
    return message if assertion is None else assertion[1].replace("] [", " ")
