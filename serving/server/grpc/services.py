"""Answers TF Serving's gRPC services, PredictionService and ModelService, from a `ServerState`."""

import asyncio
import functools
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypedDict, TypeVar

import grpc
import grpc.aio
from google.protobuf import wrappers_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.errors import Code, ServingError, invalid
from serving.saved_model.contract import SERVING
from serving.server.config_files import setups_from_config
from serving.server.grpc.tensors import array_from_proto, array_to_proto
from serving.server.models import ServerState

_LONGEST_MESSAGE: Final = 1024
_SIGNATURE_DEF: Final = "signature_def"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Request = TypeVar("Request")
Reply = TypeVar("Reply")
Rpc = Callable[["Services", Request, Context], Awaitable[Reply]]


def _rpc(answer: Rpc[Request, Reply]) -> Rpc[Request, Reply]:
    """Counts the calls of a method; those that fail end with the status of their error."""

    @functools.wraps(answer)
    async def call(self: "Services", request: Request, context: Context) -> Reply:
        model = request.model_spec.name if hasattr(request, "model_spec") else ""
        try:
            with self.state.metrics.answering(model, answer.__name__, "GRPC"):
                return await answer(self, request, context)
        except ServingError as error:
            message = error.message
            if len(message) > _LONGEST_MESSAGE:
                message = message[:_LONGEST_MESSAGE] + "...TRUNCATED"
            await context.abort(grpc.StatusCode[error.code.name], message)
            raise AssertionError("abort always raises") from error

    return call


class Services(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """Both services over the models of `state`."""

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def register(self, server: grpc.aio.Server) -> None:
        """Lets `server` answer for both."""
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self, server)

    @_rpc
    async def Predict(  # noqa: N802
        self, request: predict_pb2.PredictRequest, context: Context
    ) -> predict_pb2.PredictResponse:
        """Runs a signature."""
        spec = request.model_spec
        which = _which(spec)
        host = self.state.host(spec.name, **which)
        left = context.time_remaining()
        prediction = await host.predict_async(
            {name: array_from_proto(tensor, name=name) for name, tensor in request.inputs.items()},
            signature=spec.signature_name or None,
            **which,
            deadline=None if left is None else time.monotonic() + left,
        )
        outputs = prediction.outputs
        if request.output_filter:
            outputs = _filtered(outputs, list(request.output_filter))
        response = predict_pb2.PredictResponse(model_spec=_spec(spec.name, prediction.version))
        response.model_spec.signature_name = spec.signature_name or SERVING
        for name, array in outputs.items():
            array_to_proto(array, response.outputs[name])
        return response

    @_rpc
    async def GetModelMetadata(  # noqa: N802
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, _: Context
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The signatures of a version."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != _SIGNATURE_DEF:
                raise invalid(f"Metadata field {name} is not supported")
        spec = request.model_spec
        which = _which(spec)
        metadata = self.state.host(spec.name, **which).metadata(**which)
        response = get_model_metadata_pb2.GetModelMetadataResponse(
            model_spec=_spec(spec.name, metadata.version)
        )
        response.metadata[_SIGNATURE_DEF].Pack(metadata.signatures)
        return response

    async def _not_served(self, _: object, context: Context) -> None:
        message = "Only Predict is served: no model here has a signature for anything else"
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, message)

    # Without them the generated base class would log a traceback for each call.
    Classify = Regress = MultiInference = _not_served

    @_rpc
    async def GetModelStatus(  # noqa: N802
        self, request: get_model_status_pb2.GetModelStatusRequest, _: Context
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """The state of each version; labels are ignored, as TF Serving does."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        return self.state.status(request.model_spec.name, _which(request.model_spec)["version"])

    @_rpc
    async def HandleReloadConfigRequest(  # noqa: N802
        self, request: model_management_pb2.ReloadConfigRequest, _: Context
    ) -> model_management_pb2.ReloadConfigResponse:
        """Replaces the list of models; answers once they are loaded."""
        setups = setups_from_config(request.config, defaults=self.state.defaults)
        await asyncio.to_thread(self.state.reload, setups)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.error_code = int(Code.OK)
        return response


class BearerToken(grpc.aio.ServerInterceptor):
    """Refuses calls without `authorization: Bearer TOKEN` in their metadata."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

        async def refuse(_: Any, context: Context) -> None:
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


class _Which(TypedDict):
    version: int | None
    label: str | None


def _which(spec: model_pb2.ModelSpec) -> _Which:
    return {
        "version": spec.version.value if spec.HasField("version") else None,
        "label": spec.version_label if spec.HasField("version_label") else None,
    }


def _spec(name: str, version: int) -> model_pb2.ModelSpec:
    return model_pb2.ModelSpec(name=name, version=wrappers_pb2.Int64Value(value=version))


def _filtered(outputs: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    for name in wanted:
        if name not in outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the "
                f"set {{{','.join(sorted(outputs))}}}."
            )
        if wanted.count(name) > 1:
            raise invalid(f"duplicate output tensor alias: {name}")
    return {name: outputs[name] for name in wanted}
