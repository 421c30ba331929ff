"""One way to ask TF Serving's REST and gRPC, so that one set of cases holds both to the contract.

Nothing of the server's own code is used here: requests are written with httpx and json, and with
the official protos and TensorFlow's own tensor conversion.
"""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import grpc
import httpx
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

SECONDS = 60.0
NO_OUTPUT_NAME = {"embed": "embedding"}
"""Signatures with one output, which REST then leaves unnamed."""

Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """Where a server answers, and for which model.

    Attributes:
      grpc: `host:port`, or None.
      rest: URL without a path, or None.
      local: whether this session started it, and so may change its files.
    """

    grpc: str | None
    rest: str | None
    model: str = "siamese"
    local: bool = False

    @staticmethod
    def from_environment() -> "Target | None":
        """The server that `TFS_TARGET` and `TFS_REST` name, for the model `TFS_MODEL`."""
        target, rest = os.environ.get("TFS_TARGET"), os.environ.get("TFS_REST")
        if not target and not rest:
            return None
        if rest and "://" not in rest:
            rest = f"http://{rest}"
        return Target(target or None, rest or None, os.environ.get("TFS_MODEL", "siamese"))


class Refused(Exception):
    """The server answered with an error.

    Attributes:
      status: the HTTP status, or that of the gRPC code in TF Serving's table.
      code: gRPC's code; None in REST.
    """

    def __init__(self, status: int, code: grpc.StatusCode | None, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message


class VersionState(NamedTuple):
    """A version and its state, such as `AVAILABLE`."""

    version: int
    state: str


class Metadata(NamedTuple):
    """What a server says about a version of a model."""

    version: int
    signatures: get_model_metadata_pb2.SignatureDefMap


class Which(NamedTuple):
    """The model that is asked; the target's, at its newest version, unless said otherwise."""

    model: str | None = None
    version: int | None = None
    label: str | None = None


DEFAULT = Which()


class Api(Protocol):
    """What both protocols can be asked. Every method raises `Refused`."""

    def predict(self, signature: str, inputs: Arrays, which: Which = DEFAULT) -> dict[str, Any]:
        """Outputs by name. `signature` '' leaves the choice to the server."""

    def classify(self, which: Which = DEFAULT) -> None:
        """Classifies one Example with the default signature."""

    def regress(self, which: Which = DEFAULT) -> None:
        """Regresses one Example with the default signature."""

    def status(self, which: Which = DEFAULT) -> list[VersionState]:
        """The versions, in the server's order."""

    def metadata(self, which: Which = DEFAULT) -> Metadata:
        """The signatures."""

    def close(self) -> None:
        """Hangs up."""


class RestApi:
    """REST, in row (`instances`) or column (`inputs`) format."""

    def __init__(self, target: Target, *, rows: bool) -> None:
        assert target.rest is not None
        self._model = target.model
        self._rows = rows
        self.http = httpx.Client(base_url=target.rest, timeout=SECONDS)

    def predict(self, signature: str, inputs: Arrays, which: Which = DEFAULT) -> dict[str, Any]:
        columns = {name: _to_json(values) for name, values in inputs.items()}
        body: dict[str, Any] = {"signature_name": signature} if signature else {}
        if self._rows:
            rows = zip(*columns.values(), strict=True)
            body["instances"] = [dict(zip(columns, row, strict=True)) for row in rows]
            reply = self._post("predict", body, which)["predictions"]
            if reply and isinstance(reply[0], dict):
                return {name: np.array([row[name] for row in reply]) for name in reply[0]}
        else:
            body["inputs"] = columns
            reply = self._post("predict", body, which)["outputs"]
            if isinstance(reply, dict):
                return {name: np.array(values) for name, values in reply.items()}
        return {NO_OUTPUT_NAME[signature]: np.array(reply)}

    def classify(self, which: Which = DEFAULT) -> None:
        self._post("classify", {"examples": [{"x": 1.0}]}, which)

    def regress(self, which: Which = DEFAULT) -> None:
        self._post("regress", {"examples": [{"x": 1.0}]}, which)

    def status(self, which: Which = DEFAULT) -> list[VersionState]:
        entries = self._get("", which).json()["model_version_status"]
        return [VersionState(int(entry["version"]), entry["state"]) for entry in entries]

    def metadata(self, which: Which = DEFAULT) -> Metadata:
        reply = self._get("/metadata", which).json()
        signatures = json_format.ParseDict(
            reply["metadata"]["signature_def"], get_model_metadata_pb2.SignatureDefMap()
        )
        return Metadata(int(reply["model_spec"]["version"]), signatures)

    def path(self, which: Which = DEFAULT) -> str:
        """Path of a model, without a method."""
        path = f"/v1/models/{which.model or self._model}"
        if which.version is not None:
            path += f"/versions/{which.version}"
        if which.label is not None:
            path += f"/labels/{which.label}"
        return path

    def close(self) -> None:
        self.http.close()

    def _post(self, method: str, body: Any, which: Which) -> Any:
        # Not `json=body`: httpx refuses NaN, which TF Serving takes.
        reply = self.http.post(f"{self.path(which)}:{method}", content=json.dumps(body))
        return _checked(reply).json()

    def _get(self, resource: str, which: Which) -> httpx.Response:
        return _checked(self.http.get(f"{self.path(which)}{resource}"))


class GrpcApi:
    """gRPC with the official protos."""

    def __init__(self, target: Target) -> None:
        assert target.grpc is not None
        self._model = target.model
        self._channel = grpc.insecure_channel(
            target.grpc,
            [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(self, signature: str, inputs: Arrays, which: Which = DEFAULT) -> dict[str, Any]:
        request = predict_pb2.PredictRequest(model_spec=self.spec(which, signature))
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        reply = self.call(self.predictions.Predict, request)
        return {name: tf.make_ndarray(proto) for name, proto in reply.outputs.items()}

    def classify(self, which: Which = DEFAULT) -> None:
        request = classification_pb2.ClassificationRequest(model_spec=self.spec(which))
        request.input.example_list.examples.add().features.feature["x"].float_list.value.append(1)
        self.call(self.predictions.Classify, request)

    def regress(self, which: Which = DEFAULT) -> None:
        request = regression_pb2.RegressionRequest(model_spec=self.spec(which))
        request.input.example_list.examples.add().features.feature["x"].float_list.value.append(1)
        self.call(self.predictions.Regress, request)

    def status(self, which: Which = DEFAULT) -> list[VersionState]:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self.spec(which))
        entries = self.call(self.models.GetModelStatus, request).model_version_status
        name = get_model_status_pb2.ModelVersionStatus.State.Name
        return [VersionState(entry.version, name(entry.state)) for entry in entries]

    def metadata(self, which: Which = DEFAULT) -> Metadata:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self.spec(which), metadata_field=["signature_def"]
        )
        reply = self.call(self.predictions.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert reply.metadata["signature_def"].Unpack(signatures)
        return Metadata(reply.model_spec.version.value, signatures)

    def spec(self, which: Which = DEFAULT, signature: str = "") -> model_pb2.ModelSpec:
        """The `ModelSpec` of a request."""
        spec = model_pb2.ModelSpec(name=which.model or self._model, signature_name=signature)
        if which.version is not None:
            spec.version.value = which.version
        if which.label is not None:
            spec.version_label = which.label
        return spec

    def call(self, method: Any, request: Any) -> Any:
        """Calls a method of a stub."""
        try:
            return method(request, timeout=SECONDS)
        except grpc.RpcError as error:
            raise Refused(HTTP[error.code()], error.code(), error.details() or "") from None

    def close(self) -> None:
        self._channel.close()


HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def _to_json(values: Any) -> list[Any]:
    if isinstance(values, np.ndarray) and values.dtype != object:
        plain: list[Any] = values.tolist()
        return plain
    return [_string(value) for value in values]


def _string(value: Any) -> Any:
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _checked(reply: httpx.Response) -> httpx.Response:
    if reply.status_code == 200:
        return reply
    document = reply.json()
    assert list(document) == ["error"]
    raise Refused(reply.status_code, None, document["error"])


def opened(name: str, target: Target) -> Api:
    """The API of one of `names(target)`."""
    if name == "grpc":
        return GrpcApi(target)
    return RestApi(target, rows=name == "rest_rows")


def names(target: Target | None) -> Sequence[str]:
    """The APIs that a target can be asked through; None is the local server, which has all."""
    rest = ["rest_rows", "rest_columns"] if target is None or target.rest else []
    return [*rest, *(["grpc"] if target is None or target.grpc else [])]
