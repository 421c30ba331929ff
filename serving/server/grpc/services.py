"""TF Serving's PredictionService."""

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

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

from serving.errors import Code, ServingError
from serving.server.config_files import setups_from_config
from serving.server.grpc.tensors import array_from_proto, array_to_proto
from serving.server.loaded_version import DEFAULT_SIGNATURE
from serving.server.models import HostOptions, ModelHost, ServerState

_log = logging.getLogger(__name__)
_LONGEST_MESSAGE: Final = 1024

Reply = TypeVar("Reply")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Target(NamedTuple):
    """What a `ModelSpec` asks for."""

    host: ModelHost
    signature: str | None
    version: int | None
    label: str | None


class Service:
    """Base of the services."""

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def target(self, spec: model_pb2.ModelSpec) -> Target:
        version = spec.version.value if spec.HasField("version") else None
        label = spec.version_label if spec.HasField("version_label") else None
        host = self.state.host(spec.name, version=version, label=label)
        return Target(host, spec.signature_name or None, version, label)

    async def answer(
        self, context: Context, method: str, model: str, reply: Awaitable[Reply]
    ) -> Reply:
        """Awaits `reply`; errors end the call with their status."""
        begin = time.perf_counter()
        code, message = Code.OK, ""
        try:
            return await reply
        except ServingError as error:
            code, message = error.code, error.message
        except asyncio.CancelledError:
            # The client has gone, or its deadline has passed.
            code = Code.CANCELLED
            raise
        except Exception:
            # What happened is for the log; the client could do nothing with it.
            _log.exception("%s failed", method)
            code, message = Code.INTERNAL, "Internal error"
        finally:
            self.state.observer.request(
                model=model,
                method=method,
                entry_point="GRPC",
                code=code,
                seconds=time.perf_counter() - begin,
            )
        if len(message) > _LONGEST_MESSAGE:
            message = message[:_LONGEST_MESSAGE] + "...TRUNCATED"
        await context.abort(grpc.StatusCode[code.name], message)
        raise AssertionError("abort always raises")


_SIGNATURE_DEF: Final = "signature_def"


class PredictionService(Service, prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata."""

    async def Predict(  # noqa: N802
        self, request: predict_pb2.PredictRequest, context: Context
    ) -> predict_pb2.PredictResponse:
        """Runs a signature."""
        return await self.answer(
            context, "Predict", request.model_spec.name, self._predict(request, _deadline(context))
        )

    async def _not_served(self, _: object, context: Context) -> None:
        message = "Only Predict is served: no model here has a signature for anything else"
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, message)

    # Without them the generated base class would log a traceback for each call.
    Classify = Regress = MultiInference = _not_served

    async def GetModelMetadata(  # noqa: N802
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: Context
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The signatures of a version."""
        return await self.answer(
            context, "GetModelMetadata", request.model_spec.name, self._metadata(request)
        )

    async def _predict(
        self, request: predict_pb2.PredictRequest, deadline: float | None
    ) -> predict_pb2.PredictResponse:
        target = self.target(request.model_spec)
        prediction = await target.host.predict_async(
            {name: array_from_proto(tensor, name=name) for name, tensor in request.inputs.items()},
            signature=target.signature,
            version=target.version,
            label=target.label,
            deadline=deadline,
        )
        outputs = prediction.outputs
        if request.output_filter:
            outputs = _filtered(outputs, list(request.output_filter))
        response = predict_pb2.PredictResponse()
        _fill_spec(
            response.model_spec,
            request.model_spec.name,
            prediction.version,
            target.signature or DEFAULT_SIGNATURE,
        )
        for name, array in outputs.items():
            array_to_proto(array, response.outputs[name])
        return response

    async def _metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        if not request.HasField("model_spec"):
            raise ServingError(Code.INVALID_ARGUMENT, "Missing ModelSpec")
        if not request.metadata_field:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                "GetModelMetadataRequest must specify at least one metadata_field",
            )
        for name in request.metadata_field:
            if name != _SIGNATURE_DEF:
                raise ServingError(Code.INVALID_ARGUMENT, f"Metadata field {name} is not supported")
        target = self.target(request.model_spec)
        metadata = target.host.metadata(version=target.version, label=target.label)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        _fill_spec(response.model_spec, request.model_spec.name, metadata.version)
        response.metadata[_SIGNATURE_DEF].Pack(metadata.signatures)
        return response


def _deadline(context: Context) -> float | None:
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


def _fill_spec(
    spec: model_pb2.ModelSpec, name: str, version: int, signature: str | None = None
) -> None:
    spec.name = name
    spec.version.CopyFrom(wrappers_pb2.Int64Value(value=version))
    if signature is not None:
        spec.signature_name = signature


def _filtered(outputs: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    for name in wanted:
        if name not in outputs:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"output tensor alias not found in signature: {name} Outputs expected to be in the "
                f"set {{{','.join(sorted(outputs))}}}.",
            )
        if wanted.count(name) > 1:
            raise ServingError(Code.INVALID_ARGUMENT, f"duplicate output tensor alias: {name}")
    return {name: outputs[name] for name in wanted}


class ModelService(Service, model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest.

    Args:
      state: the models.
      defaults: what a reloaded model keeps of the server's settings.
    """

    def __init__(self, state: ServerState, *, defaults: HostOptions) -> None:
        super().__init__(state)
        self._defaults = defaults

    async def GetModelStatus(  # noqa: N802
        self, request: get_model_status_pb2.GetModelStatusRequest, context: Context
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """The state of each version; labels are ignored, as TF Serving does."""
        return await self.answer(
            context, "GetModelStatus", request.model_spec.name, self._status(request)
        )

    async def HandleReloadConfigRequest(  # noqa: N802
        self, request: model_management_pb2.ReloadConfigRequest, context: Context
    ) -> model_management_pb2.ReloadConfigResponse:
        """Replaces the list of models; answers once they are loaded."""
        return await self.answer(context, "HandleReloadConfigRequest", "", self._reload(request))

    async def _status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        if not request.HasField("model_spec"):
            raise ServingError(Code.INVALID_ARGUMENT, "Missing ModelSpec")
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        host = self.state.hosts.get(spec.name)
        if host is None:
            which = "any versions" if version is None else f"version {version}"
            raise ServingError(Code.NOT_FOUND, f"Could not find {which} of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in host.status(version):
            entry = response.model_version_status.add(
                version=status.version, state=int(status.state)
            )
            entry.status.error_code = int(status.code)
            entry.status.error_message = status.message
        return response

    async def _reload(
        self, request: model_management_pb2.ReloadConfigRequest
    ) -> model_management_pb2.ReloadConfigResponse:
        setups = setups_from_config(request.config, defaults=self._defaults)
        await asyncio.to_thread(self.state.reload, setups)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.error_code = int(Code.OK)
        return response
