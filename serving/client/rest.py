"""Clients for the served model over REST. They need httpx, numpy and Pillow, no TensorFlow.

Example:
  with Client("http://127.0.0.1:8501") as client:
      client.wait_ready()
      print(client.score("signature.png", "reference.png").score)

`AsyncClient` is the same for asyncio; `serving.client.grpc` has both over gRPC.
"""

import asyncio
import base64
import importlib
import json
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

import httpx
import numpy as np

from serving.client.base import BlockingWire, Wire
from serving.client.calls import AwaitingClient, BlockingClient
from serving.client.proxies import Proxy, is_own_machine, proxy_of, split_authority, through
from serving.client.types import (
    ClientError,
    DeadlineExceeded,
    Floats,
    GetMetadata,
    GetStatus,
    InvalidSetting,
    Predict,
    Request,
    ServerError,
    Target,
    Tls,
    Unauthorized,
    Unavailable,
    VersionStatus,
    error_of_http,
)
from serving.errors import Code

DEFAULT_URL: Final = "http://127.0.0.1:8501"
LONGEST_ERROR: Final = 1024
try:
    _SOCKS_ERRORS: tuple[type[Exception], ...] = (importlib.import_module("socksio").SOCKSError,)
except ImportError:
    _SOCKS_ERRORS = ()
_FAILURES: tuple[type[Exception], ...] = (httpx.HTTPError, asyncio.TimeoutError, *_SOCKS_ERRORS)

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
        settings, proxy = _settings(self.url, self.token, self.tls, own=self.transport is not None)
        return _BlockingHttp(httpx.Client(transport=self.transport, **settings), proxy)


@dataclass(frozen=True, eq=False)
class AsyncClient(AwaitingClient):
    """A client over REST for asyncio; its arguments are those of `Client`."""

    url: str = DEFAULT_URL
    transport: httpx.AsyncBaseTransport | None = field(default=None, kw_only=True, repr=False)

    def _connect(self) -> Wire:
        settings, proxy = _settings(self.url, self.token, self.tls, own=self.transport is not None)
        return _AsyncHttp(httpx.AsyncClient(transport=self.transport, **settings), proxy)


class _BlockingHttp(BlockingWire):
    def __init__(self, client: httpx.Client, proxy: Proxy | None) -> None:
        self._client = client
        self._proxy = proxy

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
        except _FAILURES as error:
            raise _client_error(error, timeout, self._proxy) from error
        body = b"".join(received)
        return read_answer(request, response.status_code, response.headers, body, self._proxy)

    async def close(self) -> None:
        self._client.close()


class _AsyncHttp(Wire):
    def __init__(self, client: httpx.AsyncClient, proxy: Proxy | None) -> None:
        self._client = client
        self._proxy = proxy

    async def send(self, request: Request, timeout: float) -> Any:
        method, path, body = write_request(request)
        try:
            response = await asyncio.wait_for(
                self._client.request(method, path, content=body), timeout
            )
        except _FAILURES as error:
            raise _client_error(error, timeout, self._proxy) from error
        status, body = response.status_code, response.content
        return read_answer(request, status, response.headers, body, self._proxy)

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


def _client_error(error: Exception, timeout: float, proxy: Proxy | None) -> ClientError:
    if isinstance(error, (httpx.TimeoutException, asyncio.TimeoutError)):
        return DeadlineExceeded(f"no answer within {timeout:.3g} s{through(proxy)}")
    message = f"{type(error).__name__}: {error}{through(proxy)}"
    if isinstance(error, httpx.ProxyError) and str(error).startswith("407"):
        return Unauthorized(message)
    passing = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
    if isinstance(error, (passing, _SOCKS_ERRORS)):
        return Unavailable(message)
    return ServerError(message)


def _settings(
    url: str, token: str | None, tls: Tls | None, *, own: bool
) -> tuple[dict[str, Any], Proxy | None]:
    """Arguments of both of httpx's clients, and the proxy among them.

    Args:
      own: the transport is the caller's own, for which the environment's proxies do not count.

    Raises:
      InvalidSetting: the URL, or the proxy that leads to it, makes no sense.
      ValueError: the certificates make none.
    """
    scheme, host, port = _server(url)
    secure, local = scheme == "https", is_own_machine(host)
    headers = {"content-type": "application/json"}
    if token is not None:
        if not secure and not local:
            _log.warning("The bearer token is sent to %s unencrypted: use https.", url)
        headers["authorization"] = f"Bearer {token}"
    verify: ssl.SSLContext
    if not secure:
        if tls is not None:
            raise ValueError(f"certificates are given, but {url} is not https")
        # Trusts nobody; reading the system's authorities takes longer than many a request.
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    elif tls is None:
        verify = httpx.create_ssl_context()
    else:
        verify = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            verify.load_cert_chain(tls.certificate, tls.key)
    proxy = None if own else proxy_of(scheme, host, port)
    settings = {
        "base_url": url,
        "headers": headers,
        "verify": verify,
        "limits": httpx.Limits(max_connections=100, max_keepalive_connections=100),
        "timeout": None,  # the wires keep the deadline around the whole exchange
        "proxy": None if proxy is None else _known(proxy),
        "trust_env": False,  # `proxy_of` has read it
    }
    return settings, proxy


def _server(url: str) -> tuple[Literal["http", "https"], str, int]:
    """Scheme, host and port of a URL."""
    try:
        parts = _url(url)
    except ValueError:
        parts = httpx.URL()
    host, _ = split_authority(parts.host)
    if not host or parts.scheme not in ("http", "https"):
        raise InvalidSetting(
            f"the server's URL is http://host:port or https://host:port, not {url!r}"
        )
    if parts.scheme == "http":
        return "http", host, parts.port or 80
    return "https", host, parts.port or 443


def _known(proxy: Proxy) -> httpx.Proxy:
    """The proxy, if it is one that httpx can ask."""
    try:
        known = httpx.Proxy(_url(proxy.url))
    except ValueError:
        fault = "it is no URL of http://, https://, socks5:// or socks5h://"
    else:
        if not known.url.host:
            fault = "it has no host"
        elif known.url.scheme.startswith("socks") and not _SOCKS_ERRORS:
            fault = "SOCKS takes another package (`pip install 'httpx[socks]'`)"
        else:
            return known
    raise InvalidSetting(
        f"{proxy} cannot be used: {fault}; correct {proxy.variable}, or name the server in NO_PROXY"
    )


def _url(text: str) -> httpx.URL:
    """Raises ValueError."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError) as error:
        raise ValueError(str(error)) from error
    if not 0 <= (url.port or 0) < 2**16:
        raise ValueError("there are 65,535 ports")
    return url


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


def read_answer(
    request: Request,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    proxy: Proxy | None = None,
) -> Any:
    """What `request` is answered by, through `proxy` if there is one.

    Raises:
      ClientError: the status is not 200, or the body is not what the request asks for.
    """
    if status != 200:
        raise _read_error(status, headers, body, proxy)
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


def _read_error(
    status: int, headers: Mapping[str, str], body: bytes, proxy: Proxy | None
) -> ClientError:
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        # A proxy's page, not TF Serving's answer.
        text = body[:LONGEST_ERROR].decode("utf-8", "replace").strip() or "no explanation"
        message = f"{text}{through(proxy)}"
    try:
        retry_after = max(0.0, float(headers.get("retry-after", "")))
    except ValueError:  # absent, or a date
        retry_after = None
    return error_of_http(status, message, retry_after=retry_after)
