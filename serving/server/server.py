"""Serves exported models over gRPC and REST, for development, tests and small sites."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import grpc
import grpc.aio
import uvicorn
from starlette.routing import BaseRoute

from serving.server.grpc.services import BearerToken, Services
from serving.server.models import ModelSetup, ServerState
from serving.server.rest.app import rest_app
from serving.server.rest.limits import RestConfig
from serving.server.rest.protocol import RestOptions

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

GRPC_PORT: Final = 8500
REST_PORT: Final = 8501
LOOPBACK: Final = "127.0.0.1"


class TlsFiles(NamedTuple):
    """Files in PEM format."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class ServerOptions:
    """What is served, and to whom.

    Attributes:
      models: by name.
      host: address to listen on.
      grpc_port: 0 chooses a free one, None serves no gRPC.
      rest_port: likewise.
      token: asked of every request as `Authorization: Bearer TOKEN`.
      tls: both protocols then answer TLS only.
      rest: limits of REST; the token above counts, not the one in here.
      max_message_bytes: largest gRPC request; -1: as large as gRPC allows (2 GiB), as TF Serving.
      max_calls: gRPC calls under way at the same time; what comes then is refused
        (RESOURCE_EXHAUSTED). For REST see `rest.max_connections`.
      labels_may_wait: whether a reload may give a label to a version that is not loaded yet.
      shutdown_seconds: given to the requests under way when the server stops.
      gallery: SQLite file or PostgreSQL URL of a gallery to serve under `/v1/gallery`; its vectors
        are made by the first of `models`.
    """

    models: Mapping[str, ModelSetup]
    host: str = LOOPBACK
    grpc_port: int | None = GRPC_PORT
    rest_port: int | None = REST_PORT
    token: str | None = None
    tls: TlsFiles | None = None
    rest: RestOptions = field(default_factory=RestOptions)
    max_message_bytes: int = -1
    max_calls: int = 1000
    labels_may_wait: bool = False
    shutdown_seconds: float = 30.0
    gallery: str | None = None


class LocalServer:
    """Speaks TF Serving's gRPC and REST over the models of `ServerOptions`.

    It listens as soon as it is made, also while models are still being loaded.

    Example:
      models = {"siamese": ModelSetup(Path("output/serving_model/siamese"), HostOptions())}
      with LocalServer(ServerOptions(models, grpc_port=0, rest_port=0)) as server:
          server.wait_available(60)
          client = Client(server.rest_url)

    Attributes:
      state: the models, for callers in the same process.
      grpc_port: the port, None without gRPC.
      rest_port: likewise.

    Raises:
      OSError: a port is taken, or a TLS file cannot be read.
      ServingError: the gallery cannot be opened.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.state = ServerState(options.models, labels_may_wait=options.labels_may_wait)
        self._grpc: _GrpcThread | None = None
        self._rest: _RestThread | None = None
        with ExitStack() as cleanup:
            cleanup.callback(self.state.close)
            routes: Sequence[BaseRoute] = ()
            if options.gallery is not None:
                # Its databases' modules are needed only here.
                from serving.server.gallery_mount import gallery_mount

                first = next(iter(self.state.hosts.values()))
                routes = cleanup.enter_context(gallery_mount(options.gallery, first))
            cleanup.callback(self._stop)
            if options.rest_port is not None:
                self._rest = _RestThread(self.state, options, options.rest_port, routes)
            if options.grpc_port is not None:
                self._grpc = _GrpcThread(self.state, options, options.grpc_port)
            self._cleanup = cleanup.pop_all()
        self.grpc_port = None if self._grpc is None else self._grpc.port
        self.rest_port = None if self._rest is None else self._rest.port
        self.state.start()

    @property
    def grpc_target(self) -> str:
        """Where a gRPC client connects to."""
        return f"{_bracketed(self.options.host)}:{self.grpc_port}"

    @property
    def rest_url(self) -> str:
        """Where a REST client connects to."""
        scheme = "http" if self.options.tls is None else "https"
        return f"{scheme}://{_bracketed(self.options.host)}:{self.rest_port}"

    def wait_available(self, timeout: float | None = None) -> bool:
        """Whether each model has a version to answer with before `timeout` seconds are over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return all(
            host.wait_available(None if deadline is None else max(0.0, deadline - time.monotonic()))
            for host in self.state.hosts.values()
        )

    def close(self) -> None:
        """Takes no more requests, finishes those under way, and unloads the models."""
        self._cleanup.close()

    def _stop(self) -> None:
        self.state.closing = True
        grace = self.options.shutdown_seconds
        # At the same time: each of them may need all of it.
        stopping = [
            threading.Thread(target=server.stop, args=(grace,))
            for server in (self._rest, self._grpc)
            if server is not None
        ]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()

    def __enter__(self) -> "LocalServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _GrpcThread:
    """gRPC's server, on an event loop in a thread."""

    def __init__(self, state: ServerState, options: ServerOptions, port: int) -> None:
        credentials: grpc.ServerCredentials | None = None
        if options.tls is not None:
            pair = (options.tls.key.read_bytes(), options.tls.certificate.read_bytes())
            credentials = grpc.ssl_server_credentials([pair])
        address = f"{_bracketed(options.host)}:{port}"

        async def start() -> tuple[grpc.aio.Server, int]:
            server = grpc.aio.server(
                interceptors=[] if options.token is None else [BearerToken(options.token)],
                maximum_concurrent_rpcs=options.max_calls,
                options=[
                    ("grpc.max_receive_message_length", options.max_message_bytes),
                    ("grpc.max_send_message_length", -1),
                    # Otherwise two servers could share a port, and each would get half the calls.
                    ("grpc.so_reuseport", 0),
                ],
            )
            Services(state).register(server)
            try:
                if credentials is None:
                    bound = server.add_insecure_port(address)
                else:
                    bound = server.add_secure_port(address, credentials)
            except RuntimeError as error:
                raise OSError(f"gRPC cannot listen on {address}: is the port taken?") from error
            await server.start()
            return server, bound

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True)
        self._thread.start()
        try:
            self._server, self.port = self._result(start())
        except BaseException:
            self._end()
            raise

    def stop(self, grace: float) -> None:
        """Takes no more calls, gives those under way `grace` seconds, and ends."""
        self._result(self._server.stop(grace))
        self._result(self._loop.shutdown_default_executor())
        self._end()

    def _result(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _RestThread:
    """uvicorn in a thread."""

    def __init__(
        self, state: ServerState, options: ServerOptions, port: int, routes: Sequence[BaseRoute]
    ) -> None:
        rest = replace(options.rest, token=options.token)
        config = RestConfig(
            rest_app(state, options=rest, routes=routes),
            rest,
            timeout_graceful_shutdown=options.shutdown_seconds,
            ssl_certfile=options.tls and options.tls.certificate,
            ssl_keyfile=options.tls and options.tls.key,
        )
        config.load()  # here, so that a bad certificate is the caller's error
        host = options.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            raise OSError(f"REST cannot listen on {host}:{port}: {error.strerror}") from error
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="rest", daemon=True
        )
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Takes no more connections, gives requests under way `grace` seconds, and ends."""
        self._server.should_exit = True
        self._thread.join(grace + 5.0)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(5.0)
        if self._thread.is_alive():
            # A daemon: it does not outlive the process, which should not hang for it either.
            _log.error("The REST server did not stop within %.0f s", grace + 10.0)
        self._socket.close()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
