"""Paths, replies and options of TF Serving's REST API."""

import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import orjson
from starlette.responses import Response

from serving.errors import Code, ServingError, invalid

Action = Literal["Predict", "GetModelStatus", "GetModelMetadata"]
"""What is asked for, by its name in gRPC."""

JSON: Final = "application/json"
MIB: Final = 1024 * 1024
MAX_VERSION: Final = 2**63 - 1

# The expressions of TF Serving's http_rest_api_util.cc. They see the path as it was sent: an
# escaped slash is part of a name and never a separator.
_WHICH = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST: Final = re.compile(rf"/v1/models/(?P<name>[^/:]+){_WHICH}:(?-i:predict)", re.ASCII | re.I)
_GET: Final = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?P<metadata>/metadata)?", re.ASCII | re.I
)


@dataclass(frozen=True)
class ModelPath:
    """What a request asks for.

    Attributes:
      name: of the model, unescaped; any text but the empty one.
      version: 0 to 2^63 - 1, or None.
      label: unescaped, or None; never together with a version.
    """

    action: Action
    name: str
    version: int | None = None
    label: str | None = None


def parse_model_path(method: str, raw_path: bytes) -> ModelPath:
    """Understands a request line as TF Serving does.

    Args:
      method: HTTP method in capitals.
      raw_path: still escaped, without the query.

    Raises:
      ServingError: NOT_FOUND outside `/v1/`; INVALID_ARGUMENT for anything else that TF Serving
        does not serve ("Malformed request: GET /v1/..."), a path without a model name, or a version
        beyond 64 bits.
    """
    path = raw_path.decode("latin-1")
    if path[:4].lower() != "/v1/":
        raise ServingError(Code.NOT_FOUND, "Not Found")
    match = None
    action: Action = "Predict"
    if method == "POST":
        match = _POST.fullmatch(path)
    elif method == "GET":
        match = _GET.fullmatch(path)
        action = (
            "GetModelMetadata" if match and match["metadata"] == "/metadata" else "GetModelStatus"
        )
    if match is None:
        raise invalid(f"Malformed request: {method} {path}")
    if not match["name"]:
        raise invalid("Missing model name in request.")
    return ModelPath(
        action=action,
        name=_unescape(match["name"]),
        version=_version(match["version"]),
        label=_unescape(match["label"]) if match["label"] else None,
    )


def _unescape(text: str) -> str:
    return urllib.parse.unquote_to_bytes(text.encode("latin-1")).decode("utf-8", "replace")


def _version(digits: str | None) -> int | None:
    if not digits:
        return None
    significant = digits.lstrip("0") or "0"
    # Python refuses to convert texts of more than 4,300 digits at all.
    if len(significant) > len(str(MAX_VERSION)) or int(significant) > MAX_VERSION:
        raise invalid(f"Failed to convert version: {digits} to numeric.")
    return int(significant)


def error_reply(message: str, *, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """`{"error": message}`."""
    # A client's lone surrogate, quoted in a message, has no UTF-8.
    clean = message.encode("utf-8", "replace").decode()
    return Response(orjson.dumps({"error": clean}), status, headers, JSON)


@dataclass(frozen=True)
class RestOptions:
    """What the REST server allows.

    Attributes:
      token: asked of every request as `Authorization: Bearer TOKEN`; None asks for nothing.
      open_status: answer model status (`GET /v1/models/NAME`) without the token, for probes.
      max_body_bytes: largest body of a request, after gzip is undone.
      max_json_values: most numbers, strings, lists and objects in the JSON of a request.
      max_bytes_in_flight: of all bodies that are held at once.
      header_seconds: in which the head of a request must arrive, from its first byte or, for the
        first one, from the connection.
      max_header_bytes: largest head of a request, about.
      body_seconds: in which a body must arrive.
      request_seconds: in which a prediction must be ready, TF Serving's `rest_api_timeout_in_ms`.
      keep_alive_seconds: how long an idle connection is kept. A client that has not read its reply
        by then is cut off.
      max_connections: beyond them requests are answered 503.
    """

    token: str | None = None
    open_status: bool = False
    max_body_bytes: int = 64 * MIB
    max_json_values: int = 2_000_000
    max_bytes_in_flight: int = 256 * MIB
    header_seconds: float = 10.0
    max_header_bytes: int = 64 * 1024
    body_seconds: float = 30.0
    request_seconds: float = 30.0
    keep_alive_seconds: float = 65.0
    max_connections: int = 1000
