"""Replies of the REST server, in TF Serving's form."""

from typing import Final

import orjson
from starlette.responses import Response

from serving.errors import ServingError

JSON: Final = "application/json"


def json_reply(body: bytes, *, status: int = 200) -> Response:
    """A reply whose body is JSON already."""
    return Response(body, status_code=status, media_type=JSON)


def error_reply(message: str, *, status: int, close: bool = False) -> Response:
    """`{"error": message}`; `close`: hang up afterwards, as the rest of the body is not wanted."""
    # A client's lone surrogate, quoted in a message, has no UTF-8.
    clean = message.encode("utf-8", "replace").decode()
    reply = json_reply(orjson.dumps({"error": clean}), status=status)
    if close:
        reply.headers["connection"] = "close"
    return reply


def serving_error_reply(error: ServingError) -> Response:
    """The reply to a request that failed with a canonical code."""
    return error_reply(error.message, status=error.code.http)
