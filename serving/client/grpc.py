"""Clients for the served model over gRPC. They need grpcio and tensorflow-serving-api.

Example:
  with GrpcClient("127.0.0.1:8500") as client:
      client.wait_ready()
      vectors = client.embed(["alice.png", "bob.png"])
"""

import inspect
import logging
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.client.base import BlockingWire, Wire
from serving.client.calls import AwaitingClient, BlockingClient
from serving.client.proxies import Proxy, is_own_machine, proxy_of, split_authority, through
from serving.client.types import (
    ClientError,
    GetMetadata,
    GetStatus,
    InvalidRequest,
    Predict,
    Request,
    ServerError,
    Tls,
    VersionStatus,
    error_of_code,
)
from serving.errors import Code

DEFAULT_ADDRESS: Final = "127.0.0.1:8500"
CHANNEL_OPTIONS: Final = (
    # 4 MB unless raised: less than the vectors of a large batch.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Tries are counted against the call's deadline here, and only here.
    ("grpc.enable_retries", 0),
    # A server that comes back is found soon; the default first waits a second, then ever longer.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # With `dns:///name:8500` of a headless service, all of its pods are used.
    ("grpc.lb_policy_name", "round_robin"),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GrpcClient(BlockingClient):
    """A blocking client over gRPC. Threads may share it, and then share its channel.

    Attributes:
      address: `host:port`, or any name that gRPC resolves, such as `dns:///host:port`.
    """

    address: str = DEFAULT_ADDRESS

    def _connect(self) -> BlockingWire:
        return _BlockingChannel(self.address, self.token, self.tls)


@dataclass(frozen=True, eq=False)
class AsyncGrpcClient(AwaitingClient):
    """A client over gRPC for asyncio; its arguments are those of `GrpcClient`."""

    address: str = DEFAULT_ADDRESS

    def _connect(self) -> Wire:
        return _Channel(self.address, self.token, self.tls)


class _Channel(Wire):
    """A channel made with the first request: it belongs to the event loop of that moment."""

    _library: Any = grpc.aio

    def __init__(self, address: str, token: str | None, tls: Tls | None) -> None:
        self._address = address
        self._credentials = None
        if tls is not None:
            files = (tls.ca, tls.key, tls.certificate)
            contents = (None if file is None else file.read_bytes() for file in files)
            self._credentials = grpc.ssl_channel_credentials(*contents)
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        host, port = split_address(address)
        local = not host or is_own_machine(host)
        self._proxy = None if local else proxy_of("grpc", host, port)
        if token is not None and tls is None and not local:
            _log.warning("The bearer token is sent to %s unencrypted: use tls.", address)
        self._channel: Any = None

    async def send(self, request: Request, timeout: float) -> Any:
        if self._channel is None:
            self._open()
        method, message = self._methods[type(request)], write_message(request)
        try:
            answer = method(message, timeout=timeout, metadata=self._metadata)
            if inspect.isawaitable(answer):
                answer = await answer
        except grpc.RpcError as error:
            raise _client_error(error.code(), error.details(), self._proxy) from error
        return read_message(request, answer)

    async def close(self) -> None:
        if self._channel is not None:
            closing = self._channel.close()
            if inspect.isawaitable(closing):
                await closing

    def _open(self) -> None:
        options = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(self._proxy is not None)))
        if self._credentials is None:
            channel = self._library.insecure_channel(self._address, options)
        else:
            channel = self._library.secure_channel(self._address, self._credentials, options)
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        self._methods = {
            Predict: prediction.Predict,
            GetStatus: models.GetModelStatus,
            GetMetadata: prediction.GetModelMetadata,
        }
        self._channel = channel


class _BlockingChannel(_Channel, BlockingWire):
    """A channel that threads share, made before any of them sends."""

    _library = grpc

    def __init__(self, address: str, token: str | None, tls: Tls | None) -> None:
        super().__init__(address, token, tls)
        self._open()


def split_address(address: str) -> tuple[str, int | None]:
    """Host and port of what gRPC resolves: `host:port`, `dns:///host:port`, `ipv6:[::1]:port`, ...

    Of several addresses it is the first; a socket's path has no host: ''.
    """
    scheme, _, rest = address.partition(":")
    if scheme in ("unix", "unix-abstract", "vsock"):
        return "", None
    if scheme in ("dns", "ipv4", "ipv6", "xds"):
        address = rest
    return split_authority(unquote(address.rpartition("/")[2].partition(",")[0]))


def write_message(request: Request) -> Any:
    """The request as a message of TF Serving's API."""
    target = request.target
    spec = model_pb2.ModelSpec(name=target.model, version_label=target.label)
    if target.version is not None:
        spec.version.value = target.version
    if isinstance(request, Predict):
        spec.signature_name = request.signature
        message = predict_pb2.PredictRequest(model_spec=spec, output_filter=request.outputs)
        for name, value in request.inputs.items():
            message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        return message
    if isinstance(request, GetMetadata):
        return get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=["signature_def"]
        )
    spec.ClearField("version_label")  # statuses know versions, not labels
    return get_model_status_pb2.GetModelStatusRequest(model_spec=spec)


def read_message(request: Request, answer: Any) -> Any:
    """What `request` is answered by.

    Raises:
      ServerError: the message is not what the request asks for.
    """
    if isinstance(request, GetStatus):
        return [_read_status(status) for status in answer.model_version_status]
    if isinstance(request, GetMetadata):
        return int(answer.model_spec.version.value)
    try:
        return {
            name: np.asarray(tf.make_ndarray(tensor), np.float32)
            for name, tensor in answer.outputs.items()
        }
    except (ValueError, TypeError) as error:
        raise ServerError(f"the answer holds no tensors of floats: {error}") from error


def _read_status(status: Any) -> VersionStatus:
    state = get_model_status_pb2.ModelVersionStatus.State.Name(status.state)
    number = status.status.error_code
    code = Code(number) if number in Code.__members__.values() else Code.UNKNOWN
    return VersionStatus(int(status.version), state, code, status.status.error_message)


def _client_error(status: grpc.StatusCode, details: str | None, proxy: Proxy | None) -> ClientError:
    code = Code(status.value[0])
    message = details or "no explanation"
    if code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
        message += through(proxy)
    if code is Code.RESOURCE_EXHAUSTED and "larger than max" in message:
        # A full queue has room again later; a message never becomes smaller.
        return InvalidRequest(message, code=code)
    return error_of_code(code, message)
