"""Small servers that answer as TF Serving does, for what is easier shown without a model.

The fake model's `embed` gives `[length, first byte, second byte]` of an image, its `match` has
`logit = 10 - L1`. Both protocols are real: sockets, HTTP and gRPC with the official messages.
"""

import base64
import json
import re
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.errors import Code, ServingError

PREDICT_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?:predict")
STATUS_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(/metadata)?")


@dataclass(frozen=True)
class Call:
    """What a server was asked."""

    method: str  # predict, status or metadata
    model: str
    version: int | None
    label: str | None
    signature: str
    rows: int
    authorization: str | None
    peer: str


@dataclass
class FakeModel:
    """Answers requests, after the failures and delays that a test asks for.

    Attributes:
      failures: raised by the next requests, one each.
      states: by version.
      hold: requests wait until it is set.
    """

    failures: list[ServingError] = field(default_factory=list)
    states: dict[int, str] = field(default_factory=lambda: {1: "END", 7: "AVAILABLE"})
    labels: dict[str, int] = field(default_factory=lambda: {"stable": 7})
    calls: list[Call] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    padding: int = 0  # further floats in an embedding

    def __post_init__(self) -> None:
        self.hold.set()

    def asked(self, call: Call) -> None:
        self.calls.append(call)
        self.hold.wait()
        if self.failures:
            raise self.failures.pop(0)
        if call.model != "siamese":
            raise ServingError(Code.NOT_FOUND, "Servable not found for request: Latest(x)")
        if call.version is not None and call.version not in self.states:
            raise ServingError(Code.NOT_FOUND, f"no version {call.version}")
        if call.label is not None and call.label not in self.labels:
            raise ServingError(Code.INVALID_ARGUMENT, "Unrecognized servable version label")

    def version(self, call: Call) -> int:
        if call.label is not None:
            return self.labels[call.label]
        loaded = [number for number, state in self.states.items() if state == "AVAILABLE"]
        return call.version or max(loaded)

    def predict(self, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        if signature == "embed":
            return {"embedding": self._embed(inputs["image"])}
        if signature == "serving_default":
            return _match(self._embed(inputs["image_a"]), self._embed(inputs["image_b"]))
        if signature == "match":
            return _match(inputs["embedding_a"], inputs["embedding_b"])
        raise ServingError(Code.INVALID_ARGUMENT, f"no signature {signature}")

    def _embed(self, images: list[bytes]) -> np.ndarray:
        if b"bad" in images:
            raise ServingError(Code.INVALID_ARGUMENT, "image refused: neither PNG nor JPEG")
        rows = [[len(image), image[0], image[-1], *[0.0] * self.padding] for image in images]
        return np.array(rows, np.float32)


def _match(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    logit = np.float32(10) - np.abs(a - b).sum(axis=1, dtype=np.float32)
    return {"score": 1 / (1 + np.exp(-logit)), "logit": logit}


@contextmanager
def rest_server(model: FakeModel) -> Iterator[str]:
    """Serves the fake model on a free port; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self._answer(PREDICT_PATH)

        def do_GET(self) -> None:
            self._answer(STATUS_PATH)

        def _answer(self, pattern: re.Pattern[str]) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                answer, code = _rest_answer(model, pattern, self, body), Code.OK
            except ServingError as error:
                answer, code = {"error": error.message}, error.code
            data = json.dumps(answer).encode()
            self.send_response(code.http)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        model.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _rest_answer(
    model: FakeModel, pattern: re.Pattern[str], handler: BaseHTTPRequestHandler, body: bytes
) -> Any:
    found = pattern.fullmatch(handler.path)
    if found is None:
        raise ServingError(Code.NOT_FOUND, f"Malformed request: {handler.path}")
    name, version, label = found.group(1, 2, 3)
    content = json.loads(body) if body else {}
    inputs = {
        key: [base64.b64decode(item["b64"]) if "b64" in item else item for item in column]
        if isinstance(column[0], dict)
        else np.array(column, np.float32)
        for key, column in content.get("inputs", {}).items()
    }
    method = "predict" if body else ("metadata" if found.group(4) else "status")
    call = Call(
        method,
        name,
        int(version) if version else None,
        label,
        content.get("signature_name", ""),
        max(map(len, inputs.values()), default=0),
        handler.headers.get("authorization"),
        f"{handler.client_address[1]}",
    )
    model.asked(call)
    if method == "predict":
        outputs = {k: v.tolist() for k, v in model.predict(call.signature, inputs).items()}
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
    if method == "metadata":
        return {"model_spec": {"name": name, "version": str(model.version(call))}}
    return {
        "model_version_status": [
            {
                "version": str(number),
                "state": state,
                "status": {"error_code": "OK", "error_message": ""},
            }
            for number, state in model.states.items()
            if call.version in (None, number)
        ]
    }


@contextmanager
def grpc_server(model: FakeModel, *, credentials: Any = None) -> Iterator[str]:
    """Serves the fake model on a free port; yields its address."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    servicer = _Servicer(model)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        model.hold.set()
        server.stop(0).wait()


class _Servicer(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def _asked(self, method: str, request: Any, context: Any, *, rows: int = 0) -> Call:
        spec = request.model_spec
        call = Call(
            method,
            spec.name,
            spec.version.value if spec.HasField("version") else None,
            spec.version_label or None,
            spec.signature_name,
            rows,
            dict(context.invocation_metadata()).get("authorization"),
            context.peer(),
        )
        try:
            self._model.asked(call)
        except ServingError as error:
            context.abort(grpc.StatusCode[error.code.name], error.message)
        return call

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        rows = max(map(len, inputs.values()))
        call = self._asked("predict", request, context, rows=rows)
        try:
            outputs = self._model.predict(call.signature, inputs)
        except ServingError as error:
            context.abort(grpc.StatusCode[error.code.name], error.message)
        response = predict_pb2.PredictResponse()
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        call = self._asked("metadata", request, context)
        response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=request.model_spec)
        response.model_spec.version.value = self._model.version(call)
        return response

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        call = self._asked("status", request, context)
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, state in self._model.states.items():
            if call.version in (None, number):
                value = get_model_status_pb2.ModelVersionStatus.State.Value(state)
                response.model_version_status.add(version=number, state=value)
        return response
