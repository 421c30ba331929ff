"""A model that lives in memory, for tests of the REST API alone."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from serving.errors import Code, ServingError
from serving.server.loaded_version import Metadata
from serving.server.metrics import ServingMetrics
from serving.server.model_host import Prediction
from serving.server.versions import never_seen

VERSION = 7
NAME = "echo"


def signature_map() -> get_model_metadata_pb2.SignatureDefMap:
    """`serving_default`: x float[N] and y string[N]; `one`: x float[N, 2]; `raw_bytes`: strings."""
    made = get_model_metadata_pb2.SignatureDefMap()
    for name, inputs in {
        "serving_default": {"x": types_pb2.DT_FLOAT, "y": types_pb2.DT_STRING},
        "one": {"x": types_pb2.DT_FLOAT},
        "words": {"word": types_pb2.DT_STRING},
        "counts": {"n": types_pb2.DT_INT32},
        "no_inputs": {},
    }.items():
        signature = made.signature_def[name]
        signature.method_name = "tensorflow/serving/predict"
        for key, dtype in inputs.items():
            signature.inputs[key].dtype = dtype
            signature.inputs[key].name = f"{name}_{key}:0"
            signature.inputs[key].tensor_shape.dim.add().size = -1
    return made


@dataclass
class EchoHost:
    """Answers with its inputs, each output named like the input.

    Attributes:
      failure: raised instead of an answer.
      delay: seconds before an answer.
    """

    failure: Exception | None = None
    delay: float = 0.0
    deadlines: list[float | None] = field(default_factory=list)

    async def predict_async(
        self,
        inputs: Mapping[str, np.ndarray],
        *,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        deadline: float | None = None,
    ) -> Prediction:
        self.deadlines.append(deadline)
        await asyncio.sleep(self.delay)
        if self.failure is not None:
            raise self.failure
        if signature == "words":
            return Prediction({"word_bytes": inputs["word"], "word": inputs["word"]}, VERSION)
        return Prediction(dict(inputs), VERSION)

    def metadata(self, *, version: int | None = None, label: str | None = None) -> Metadata:
        if version not in (None, VERSION):
            raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {version}")
        if label not in (None, "stable"):
            raise ServingError(
                Code.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}"
            )
        return Metadata(VERSION, signature_map())


class EchoState:
    """A `ServerState` with one `EchoHost`."""

    def __init__(self) -> None:
        self.echo = EchoHost()
        self.metrics = ServingMetrics([NAME])
        self.closing = False

    def host(self, name: str, *, version: int | None = None, label: str | None = None) -> EchoHost:
        if name != NAME:
            raise ServingError(Code.NOT_FOUND, f"Servable not found for request: Latest({name})")
        return self.echo

    def status(
        self, name: str, version: int | None = None
    ) -> get_model_status_pb2.GetModelStatusResponse:
        if name != NAME or version not in (None, VERSION):
            raise never_seen(name, version)
        status = get_model_status_pb2.ModelVersionStatus(version=VERSION, state="AVAILABLE")
        status.status.error_code = 0
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=[status])


def call(app: Any, method: str, path: str, **arguments: Any) -> httpx.Response:
    """One request to an ASGI application, without a network."""

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **arguments)

    return asyncio.run(request())
