"""Clients for the served model over REST. They need httpx, numpy and Pillow, no TensorFlow.

Example:
  with Client("http://127.0.0.1:8501") as client:
      client.wait_ready()
      print(client.score("signature.png", "reference.png").score)

`AsyncClient` is the same for asyncio; `serving.client.grpc` has both over gRPC.
"""

import asyncio
import base64
import json
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import httpx
import numpy as np

from serving.client.base import LOOPBACK, BlockingWire, Wire
from serving.client.calls import AwaitingClient, BlockingClient
from serving.client.types import (
    ClientError,
    DeadlineExceeded,
    Floats,
    GetMetadata,
    GetStatus,
    Predict,
    Request,
    ServerError,
    Target,
    Tls,
    Unavailable,
    VersionStatus,
    error_of_http,
)
from serving.errors import Code

DEFAULT_URL: Final = "http://127.0.0.1:8501"
LONGEST_ERROR: Final = 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Client(BlockingClient):
    """A blocking client over REST. Threads may share it, and then share its connections.

    Attributes:
      url: of the server, `http://` or `https://`, without `/v1/...`.
      transport: replaces httpx's own, for tests or proxies.
    """

    url: str = DEFAULT_URL
    transport: httpx.BaseTransport | None = field(default=None, kw_only=True, repr=False)

    def _connect(self) -> BlockingWire:
        settings = _settings(self.url, self.token, self.tls)
        return _BlockingHttp(httpx.Client(transport=self.transport, **settings))


@dataclass(frozen=True, eq=False)
class AsyncClient(AwaitingClient):
    """A client over REST for asyncio; its arguments are those of `Client`."""

    url: str = DEFAULT_URL
    transport: httpx.AsyncBaseTransport | None = field(default=None, kw_only=True, repr=False)

    def _connect(self) -> Wire:
        settings = _settings(self.url, self.token, self.tls)
        return _AsyncHttp(httpx.AsyncClient(transport=self.transport, **settings))


class _BlockingHttp(BlockingWire):
    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    async def send(self, request: Request, timeout: float) -> Any:
        method, path, body = write_request(request)
        left = _TimeLeft(timeout)
        try:
            with self._client.stream(
                method, path, content=body, extensions={"timeout": left}
            ) as response:
                received = []
                for part in response.iter_bytes():
                    received.append(part)
                    if left.seconds() <= 0:
                        raise httpx.ReadTimeout("the body came too slowly")
        except httpx.HTTPError as error:
            raise _client_error(error, timeout) from error
        return read_answer(request, response.status_code, response.headers, b"".join(received))

    async def close(self) -> None:
        self._client.close()


class _AsyncHttp(Wire):
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def send(self, request: Request, timeout: float) -> Any:
        method, path, body = write_request(request)
        try:
            response = await asyncio.wait_for(
                self._client.request(method, path, content=body), timeout
            )
        except (httpx.HTTPError, asyncio.TimeoutError) as error:
            raise _client_error(error, timeout) from error
        return read_answer(request, response.status_code, response.headers, response.content)

    async def close(self) -> None:
        await self._client.aclose()


class _TimeLeft(dict[str, float]):
    """Timeouts that shrink.

    httpx has a timeout for each phase of an exchange, not for the whole of it. The transport looks
    them up as each phase begins, and finds what is left by then.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(dict.fromkeys(("pool", "connect", "write", "read"), seconds))
        self._end = time.monotonic() + seconds

    def seconds(self) -> float:
        return self._end - time.monotonic()

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ARG002
        return max(self.seconds(), 0.001)


def _client_error(error: Exception, timeout: float) -> ClientError:
    if isinstance(error, (httpx.TimeoutException, asyncio.TimeoutError)):
        return DeadlineExceeded(f"no answer within {timeout:.3g} s")
    if isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)):
        return Unavailable(f"{type(error).__name__}: {error}")
    return ServerError(f"{type(error).__name__}: {error}")


def _settings(url: str, token: str | None, tls: Tls | None) -> dict[str, Any]:
    """Arguments of both of httpx's clients.

    Raises:
      ValueError: the URL or the certificates make no sense.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"the server's URL is http://host:port or https://host:port, not {url!r}")
    secure, local = parts.scheme == "https", parts.hostname in LOOPBACK
    headers = {"content-type": "application/json"}
    if token is not None:
        if not secure and not local:
            _log.warning("The bearer token is sent to %s unencrypted: use https.", url)
        headers["authorization"] = f"Bearer {token}"
    verify: ssl.SSLContext | bool = True
    if not secure:
        if tls is not None:
            raise ValueError(f"certificates are given, but {url} is not https")
        # Trusts nobody; reading the system's authorities takes longer than many a request.
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    elif tls is not None:
        verify = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            verify.load_cert_chain(tls.certificate, tls.key)
    return {
        "base_url": url,
        "headers": headers,
        "verify": verify,
        "limits": httpx.Limits(max_connections=100, max_keepalive_connections=100),
        "timeout": None,  # the wires keep the deadline around the whole exchange
        "trust_env": not local,  # HTTP_PROXY and the like: no proxy leads to one's own machine
    }


class HttpRequest(NamedTuple):
    """What to send; the path begins with a slash."""

    method: str
    path: str
    body: bytes | None


def write_request(request: Request) -> HttpRequest:
    """The request in the API's column format, images in base64."""
    if isinstance(request, Predict):
        body = {"signature_name": request.signature, "inputs": request.inputs}
        text = json.dumps(body, separators=(",", ":"), default=_json_value)
        return HttpRequest("POST", f"{_path(request.target)}:predict", text.encode())
    if isinstance(request, GetMetadata):
        return HttpRequest("GET", f"{_path(request.target)}/metadata", None)
    # Statuses know versions, not labels.
    unlabelled = Target(request.target.model, version=request.target.version)
    return HttpRequest("GET", _path(unlabelled), None)


def read_answer(request: Request, status: int, headers: Mapping[str, str], body: bytes) -> Any:
    """What `request` is answered by.

    Raises:
      ClientError: the status is not 200, or the body is not what the request asks for.
    """
    if status != 200:
        raise _read_error(status, headers, body)
    try:
        answer = json.loads(body)
        if isinstance(request, Predict):
            return _read_outputs(request, answer["outputs"])
        if isinstance(request, GetStatus):
            return [_read_status(entry) for entry in answer["model_version_status"]]
        return int(answer["model_spec"]["version"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ServerError(
            f"the answer is not one of TF Serving's: {type(error).__name__}: {error}"
        ) from error


def _path(target: Target) -> str:
    path = f"/v1/models/{quote(target.model, safe='')}"
    if target.version is not None:
        return f"{path}/versions/{target.version}"
    if target.label is not None:
        return f"{path}/labels/{quote(target.label, safe='')}"
    return path


def _json_value(value: bytes | Floats) -> Any:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    return value.tolist()


def _read_outputs(request: Predict, outputs: Any) -> dict[str, Floats]:
    # A single output comes without its name.
    if len(request.outputs) == 1 and not isinstance(outputs, dict):
        outputs = {request.outputs[0]: outputs}
    return {name: np.array(outputs[name], np.float32) for name in request.outputs}


def _read_status(entry: Mapping[str, Any]) -> VersionStatus:
    status = entry.get("status", {})
    name = status.get("error_code", "OK")
    code = Code[name] if name in Code.__members__ else Code.UNKNOWN
    return VersionStatus(
        int(entry["version"]), str(entry["state"]), code, str(status.get("error_message", ""))
    )


def _read_error(status: int, headers: Mapping[str, str], body: bytes) -> ClientError:
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        # A proxy's page, not TF Serving's answer.
        message = body[:LONGEST_ERROR].decode("utf-8", "replace").strip() or "no explanation"
    try:
        retry_after = max(0.0, float(headers.get("retry-after", "")))
    except ValueError:  # absent, or a date
        retry_after = None
    return error_of_http(status, message, retry_after=retry_after)
