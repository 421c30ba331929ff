"""HTTP connections whose clients may be slow, endless or silent."""

import asyncio
import socket
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.rest_options import RestOptions
from serving.rest_replies import error_reply

HEAD_TOO_LARGE: Final = 431


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
    """A connection that is closed unless heads of requests arrive whole, soon and small."""

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
        super().data_received(data)
        if self._head_timer is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self._options.max_header_bytes:
                limit = self._options.max_header_bytes
                self._refuse(HEAD_TOO_LARGE, f"Request head is larger than {limit} bytes")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._head_is_here()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP."""
        self._refuse(400, f"Malformed request: {msg}")

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection, whether or not the client has read its reply."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

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
            self._refuse(408, "The head of the request did not arrive in time")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        self._head_is_here()
        reply = error_reply(message, status=status, close=True)
        head = [b"HTTP/1.1 %d \r\n" % status]
        head += [b"%s: %s\r\n" % header for header in reply.raw_headers]
        self.transport.write(b"".join([*head, b"\r\n", bytes(reply.body)]))
        self.transport.close()
