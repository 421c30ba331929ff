"""TF Serving's ModelService: which versions are there, and which models should be."""

import asyncio

from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
)

from serving.errors import Code, ServingError
from serving.grpc_calls import Context, Service
from serving.model_config import setups_from_config
from serving.registry import ServerState
from serving.servable import HostOptions


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
