"""Runs a gRPC server on an event loop of its own, in a thread."""

import asyncio
import hmac
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio

from serving.server.grpc.services import Services


class TlsFiles(NamedTuple):
    """Files in PEM format."""

    certificate: Path
    key: Path


class GrpcThread:
    """Serves until it is stopped.

    Args:
      host: address to listen on.
      port: 0 chooses a free one.
      services: what it serves.
      token: asked of every call as `authorization: Bearer TOKEN`; None asks for nothing.
      max_message_bytes: largest request; -1: as large as gRPC allows.
      max_calls: under way at the same time; what comes then is refused (RESOURCE_EXHAUSTED).
      tls: answers TLS only.

    Raises:
      OSError: the port is taken, or a TLS file cannot be read.
    """

    def __init__(
        self,
        host: str,
        port: int,
        services: Services,
        *,
        token: str | None = None,
        max_message_bytes: int = -1,
        max_calls: int | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        self._host = host
        self._wanted_port = port
        self._services = services
        self._interceptors = [] if token is None else [BearerToken(token)]
        self._max_message_bytes = max_message_bytes
        self._max_calls = max_calls
        self._credentials: grpc.ServerCredentials | None = None
        if tls is not None:
            pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
            self._credentials = grpc.ssl_server_credentials([pair])
        self._started: Future[int] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._grace = 0.0
        self._thread = threading.Thread(target=self._run, name="grpc", daemon=True)
        self._thread.start()
        self.port = self._started.result()

    def stop(self, grace: float) -> None:
        """Takes no more calls, gives those under way `grace` seconds, and ends."""
        self._grace = grace
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(
            interceptors=self._interceptors,
            maximum_concurrent_rpcs=self._max_calls,
            options=[
                ("grpc.max_receive_message_length", self._max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Otherwise two servers could share a port, and each would get half the calls.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._services.register(server)
        host = f"[{self._host}]" if ":" in self._host else self._host
        address = f"{host}:{self._wanted_port}"
        try:
            if self._credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}: is the port taken?") from error
        await server.start()
        self._started.set_result(port)
        await self._stop.wait()
        await server.stop(self._grace)


class BearerToken(grpc.aio.ServerInterceptor):
    """Refuses calls without `authorization: Bearer TOKEN` in their metadata."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

        async def refuse(_: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Missing or wrong bearer token")

        self._refusal: Any = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Called before the request is read."""
        for key, value in handler_call_details.invocation_metadata or ():
            given = value if isinstance(value, bytes) else value.encode()
            if key == "authorization" and hmac.compare_digest(given, self._expected):
                return await continuation(handler_call_details)
        return self._refusal
