"""Serves exported models over gRPC and REST, for development, tests and small sites."""

import logging
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import uvicorn

from serving.server.grpc.services import Services
from serving.server.grpc.thread import GrpcThread, TlsFiles
from serving.server.models import ModelSetup, ServerState
from serving.server.rest.app import rest_app
from serving.server.rest.limits import RestConfig
from serving.server.rest.protocol import RestOptions

if TYPE_CHECKING:
    from serving.server.gallery_mount import GalleryMount

_log = logging.getLogger(__name__)

GRPC_PORT: Final = 8500
REST_PORT: Final = 8501
LOOPBACK: Final = "127.0.0.1"


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
        self._closed = False
        self.state = ServerState(options.models, labels_may_wait=options.labels_may_wait)
        self._grpc: GrpcThread | None = None
        self._rest: _RestThread | None = None
        self._gallery: GalleryMount | None = None
        try:
            if options.gallery is not None:
                self._gallery = self._open_gallery(options.gallery)
            if options.rest_port is not None:
                self._rest = self._start_rest(options.rest_port)
            if options.grpc_port is not None:
                self._grpc = self._start_grpc(options.grpc_port)
        except BaseException:
            self.close()
            raise
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
        return self.state.wait_available(timeout)

    def close(self) -> None:
        """Takes no more requests, finishes those under way, and unloads the models."""
        if self._closed:
            return
        self._closed = True
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
        if self._gallery is not None:
            self._gallery.close()
        self.state.close()

    def __enter__(self) -> "LocalServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_rest(self, port: int) -> "_RestThread":
        options = self.options
        rest = replace(options.rest, token=options.token)
        routes = self._gallery.routes() if self._gallery is not None else ()
        app = rest_app(self.state, options=rest, routes=routes)
        tls = {}
        if options.tls is not None:
            tls = {
                "ssl_certfile": str(options.tls.certificate),
                "ssl_keyfile": str(options.tls.key),
            }
        config = RestConfig(app, rest, timeout_graceful_shutdown=options.shutdown_seconds, **tls)
        return _RestThread(config, options.host, port)

    def _start_grpc(self, port: int) -> GrpcThread:
        options = self.options
        # What a reloaded configuration says nothing about stays as it was.
        defaults = replace(next(iter(options.models.values())).options, labels={})
        return GrpcThread(
            options.host,
            port,
            Services(self.state, defaults=defaults),
            token=options.token,
            max_message_bytes=options.max_message_bytes,
            max_calls=options.max_calls,
            tls=options.tls,
        )

    def _open_gallery(self, location: str) -> "GalleryMount":
        # Its databases' modules are needed only here.
        from serving.server.gallery_mount import GalleryMount

        return GalleryMount(location, next(iter(self.state.hosts.values())))


class _RestThread:
    """uvicorn in a thread."""

    def __init__(self, config: RestConfig, host: str, port: int) -> None:
        config.load()  # here, so that a bad certificate is the caller's error
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
