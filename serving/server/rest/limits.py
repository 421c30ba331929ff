"""Limits on REST: the token, the size and time of requests, the number of connections."""

import asyncio
import hmac
import socket
import zlib
from http import HTTPStatus
from typing import Any, Final

import anyio
import httptools
import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.errors import Code, ServingError
from serving.server.rest.protocol import RestOptions, error_reply, parse_model_path

GZIP: Final = 16 + zlib.MAX_WBITS
HANG_UP: Final = {"connection": "close"}
"""Where the rest of a request is not wanted."""


class Guard:
    """ASGI middleware that hands on requests of clients who may ask, with their whole body at once.

    Bodies are counted while they arrive, so that neither a huge nor a slow one, nor many at a time,
    can take the server's memory. Bodies with `Content-Encoding: gzip` are undone, as TF Serving
    does, under the same limit.
    """

    def __init__(self, app: ASGIApp, options: RestOptions) -> None:
        self._app = app
        self._options = options
        self._token = None if options.token is None else options.token.encode()
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request; see the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = _Counted()
        request = Request(scope, receive)
        try:
            self._check_token(request)
            body = await self._decoded(request, await self._read(request, counted), counted)
            await self._app(scope, _whole(body, receive), send)
        except HTTPException as refused:
            reply = error_reply(refused.detail, status=refused.status_code, headers=refused.headers)
            await reply(scope, receive, send)
        except ClientDisconnect:
            return
        finally:
            self._held -= counted.size

    def _check_token(self, request: Request) -> None:
        if self._token is None or (self._options.open_status and _asks_status(request.scope)):
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        # Headers are read as latin-1; this gives back the bytes that were sent.
        match = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        if kind.lower() != "bearer" or not match:
            raise HTTPException(
                Code.UNAUTHENTICATED.http,
                "This server asks for a token: Authorization: Bearer TOKEN",
                {**HANG_UP, "www-authenticate": "Bearer"},
            )

    async def _read(self, request: Request, counted: "_Counted") -> bytes:
        declared = request.headers.get("content-length", "")
        if declared.isdecimal():
            self._check_size(int(declared[:20]), counted)
        chunks = []
        with anyio.move_on_after(self._options.body_seconds):
            async for chunk in request.stream():
                self._hold(len(chunk), counted)
                chunks.append(chunk)
            return b"".join(chunks)
        message = f"The request did not arrive within {self._options.body_seconds:g} s"
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, message, HANG_UP)

    def _hold(self, size: int, counted: "_Counted") -> None:
        self._check_size(counted.size + size, counted)
        counted.size += size
        self._held += size

    def _check_size(self, size: int, counted: "_Counted") -> None:
        if size > self._options.max_body_bytes:
            raise self._too_large()
        if self._held - counted.size + size > self._options.max_bytes_in_flight:
            raise HTTPException(
                Code.RESOURCE_EXHAUSTED.http,
                "The server holds as many bytes of requests as it may; try again later",
                {**HANG_UP, "retry-after": "1"},
            )

    def _too_large(self) -> HTTPException:
        message = f"Request body is larger than {self._options.max_body_bytes} bytes"
        return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, HANG_UP)

    async def _decoded(self, request: Request, body: bytes, counted: "_Counted") -> bytes:
        encoding = request.headers.get("content-encoding", "").strip().lower()
        if encoding in ("", "identity"):
            return body
        wrong = Code.INVALID_ARGUMENT.http
        if encoding not in ("gzip", "x-gzip"):  # one and the same (RFC 9110, 8.4.1.3)
            message = f"Content-Encoding {encoding!r} is not supported: send gzip, or none"
            raise HTTPException(wrong, message)
        try:
            plain = await anyio.to_thread.run_sync(_gunzip, body, self._options.max_body_bytes)
        except OverflowError:
            raise self._too_large() from None
        except (ValueError, zlib.error):
            raise HTTPException(wrong, "Request body is not whole gzip data") from None
        self._hold(max(0, len(plain) - counted.size), counted)
        return plain


class _Counted:
    """How many bytes of a request are held."""

    def __init__(self) -> None:
        self.size = 0


def _gunzip(data: bytes, limit: int) -> bytes:
    """Raises OverflowError beyond `limit` bytes, ValueError or zlib.error for broken data."""
    stream = zlib.decompressobj(GZIP)
    plain = stream.decompress(data, limit + 1)
    if len(plain) > limit:
        raise OverflowError
    if not stream.eof or stream.unused_data:
        raise ValueError("truncated, or followed by something else")
    return plain


def _whole(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body in one message, then whatever comes."""
    waiting = [body]

    async def give() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return give


def _asks_status(scope: Scope) -> bool:
    try:
        return parse_model_path(scope["method"], scope["raw_path"]).action == "GetModelStatus"
    except ServingError:
        return False


class RestConfig(uvicorn.Config):
    """Settings of uvicorn for a server of `rest_app`.

    uvicorn waits for the head of a request as long as it takes; with this configuration it does
    not (see `RestOptions`).

    Example:
      server = uvicorn.Server(RestConfig(rest_app(state, options=options), options, port=8501))
    """

    def __init__(self, app: ASGIApp, options: RestOptions, **settings: Any) -> None:
        """`settings`: of `uvicorn.Config`, such as `host`, `port`, `fd` or `ssl_certfile`."""
        self.options = options
        ours: dict[str, Any] = {
            "http": RestProtocol,
            "ws": "none",
            "lifespan": "off",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "date_header": False,
            "timeout_keep_alive": options.keep_alive_seconds,
            "limit_concurrency": options.max_connections,
        }
        super().__init__(app, **(ours | settings))


class RestProtocol(HttpToolsProtocol):
    """A connection in HTTP/1 alone, closed unless heads of requests come whole, soon and small."""

    def __init__(
        self,
        config: RestConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._options = config.options
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is awaited from here on."""
        super().connection_made(transport)
        # Head and body of a reply are two packets. asyncio sets this only where a listening socket
        # says it is TCP; without it the body waits 40 ms for the client to acknowledge the head.
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes of the client."""
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._head_timer is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self._options.max_header_bytes:
                limit = self._options.max_header_bytes
                message = f"Request head is larger than {limit} bytes"
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        if self._offers_upgrade():
            return
        self._head_is_here()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Its body is whole."""
        if not self._offers_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, f"Malformed request: {msg}")

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection, whether or not the client has read its reply."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _parse(self, data: bytes) -> None:
        """Reads on where a client offers another protocol (`Upgrade`) as if it did not.

        The parser ends such a request with its head, and leaves the rest to the other protocol.
        A server may keep to its own (RFC 9110, 7.8): a new parser reads the same head without the
        offer, then the rest.

        Raises:
          httptools.HttpParserError: it is no HTTP.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                method, version = self.parser.get_method(), self.parser.get_http_version()
                head = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
                head += [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
                data = b"\r\n".join([*head, b"", data[upgrade.args[0] :]])
                self.parser = httptools.HttpRequestParser(self)
                # As uvicorn's own: what follows a `Connection: close` is no error.
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _offers_upgrade(self) -> bool:
        # A CONNECT counts as one too, with nothing to leave out; uvicorn refuses its target.
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self._options.header_seconds, self._give_up)

    def _head_is_here(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        # A keep-alive connection may still be owed the reply to an earlier, pipelined request.
        if self.cycle is None or self.cycle.response_complete:
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT, "The head of the request did not arrive in time"
            )
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        self._head_is_here()
        reply = error_reply(message, status=status, headers=HANG_UP)
        head = [b"HTTP/1.1 %d \r\n" % status]
        head += [b"%s: %s\r\n" % header for header in reply.raw_headers]
        self.transport.write(b"".join([*head, b"\r\n", bytes(reply.body)]))
        self.transport.close()
