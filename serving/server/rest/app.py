"""Answers TF Serving's REST API from a `ServerState`."""

import logging
import time
from collections.abc import Sequence

from google.protobuf import json_format, message, wrappers_pb2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send
from tensorflow_serving.apis import model_pb2

from serving.errors import Code, ServingError, invalid
from serving.saved_model.contract import SERVING
from serving.server.metrics import METRICS_PATH
from serving.server.models import ServerState
from serving.server.rest.limits import Guard
from serving.server.rest.predict_json import parse_body, read_inputs, write_outputs
from serving.server.rest.protocol import (
    JSON,
    ModelPath,
    RestOptions,
    error_reply,
    parse_model_path,
)

_log = logging.getLogger(__name__)


def rest_app(
    state: ServerState, *, options: RestOptions, routes: Sequence[BaseRoute] = ()
) -> Starlette:
    """TF Serving's REST API, its Prometheus metrics, and routes of one's own.

    Whatever a client sends is answered with a status below 500 and `{"error": MESSAGE}`, unless the
    model itself fails. Serve it with `serving.server.rest.limits.RestConfig`, which also
    guards against slow clients.

    Args:
      state: the models, and their metrics.
      options: limits, and the token.
      routes: more routes, under the same limits and the same token.
    """

    def show_metrics(_: Request) -> Response:
        return Response(state.metrics.exposition(), media_type="text/plain; version=0.0.4")

    app = Starlette(
        routes=[Route(METRICS_PATH, show_metrics, methods=["GET"]), *routes],
        middleware=[Middleware(Guard, options)],
        exception_handlers={
            ServingError: _on_serving_error,
            HTTPException: _on_http_error,
            Exception: _on_error,
        },
    )
    app.router.redirect_slashes = False
    # Everything else: TF Serving matches paths as they were sent, Starlette unescapes them first.
    app.router.default = ModelApi(state, options)
    return app


class ModelApi:
    """ASGI application of `/v1/models/...`."""

    def __init__(self, state: ServerState, options: RestOptions) -> None:
        self._state = state
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request; see the ASGI specification."""
        if scope["type"] != "http":
            return
        path = parse_model_path(scope["method"], scope["raw_path"])
        with self._state.metrics.answering(path.name, path.action, "REST"):
            body: bytes = (await receive()).get("body", b"")
            answer = await self._answer(path, body)
        await Response(answer, media_type=JSON)(scope, receive, send)

    async def _answer(self, path: ModelPath, body: bytes) -> bytes:
        if path.action == "GetModelStatus":  # TF Serving looks at no label here
            return _to_json(self._state.status(path.name, path.version))
        if path.action == "GetModelMetadata":
            return self._metadata(path)
        if self._state.closing:
            raise ServingError(Code.UNAVAILABLE, "Server is shutting down")
        return await self._predict(path, body)

    async def _predict(self, path: ModelPath, body: bytes) -> bytes:
        name, document = parse_body(body, max_values=self._options.max_json_values)
        name = name or SERVING
        host = self._state.host(path.name, version=path.version, label=path.label)
        metadata = host.metadata(version=path.version, label=path.label)
        signatures = metadata.signatures.signature_def
        if name not in signatures:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        types = {key: info.dtype for key, info in signatures[name].inputs.items()}
        if not types:
            raise invalid(f"Failed to get input map for signature: {name}")
        inputs, form = read_inputs(document, types)
        # The values live on as arrays; as JSON they take many times the memory of the request.
        document.clear()
        prediction = await host.predict_async(
            inputs,
            signature=name,
            version=path.version,
            label=path.label,
            deadline=time.monotonic() + self._options.request_seconds,
        )
        return write_outputs(prediction.outputs, form)

    def _metadata(self, path: ModelPath) -> bytes:
        host = self._state.host(path.name, version=path.version, label=path.label)
        version, signatures = host.metadata(version=path.version, label=path.label)
        spec = model_pb2.ModelSpec(name=path.name, version=wrappers_pb2.Int64Value(value=version))
        # TF Serving glues the same two texts together.
        return b'{\n"model_spec":%s,\n"metadata": {"signature_def": %s}\n}\n' % (
            _to_json(spec),
            _to_json(signatures),
        )


def _to_json(proto: message.Message) -> bytes:
    text: str = json_format.MessageToJson(
        proto, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=1
    )
    return text.encode()


async def _on_serving_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)
    return error_reply(error.message, status=error.code.http)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_reply(error.detail, status=error.status_code, headers=error.headers)


async def _on_error(_: Request, error: Exception) -> Response:
    _log.error("REST request failed", exc_info=error)
    return error_reply("Internal error", status=Code.INTERNAL.http)
