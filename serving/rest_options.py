"""Settings of the REST server."""

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024


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
