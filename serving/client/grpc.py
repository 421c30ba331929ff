"""Clients for the served model over gRPC. They need grpcio and tensorflow-serving-api.

Example:
  with GrpcClient("127.0.0.1:8500") as client:
      client.wait_ready()
      vectors = client.embed(["alice.png", "bob.png"])
"""

import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.client.base import (
    DEFAULT_LIMITS,
    DEFAULT_MODEL,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT,
    AwaitingClient,
    BlockingClient,
)
from serving.client.types import (
    ClientError,
    Floats,
    GetMetadata,
    GetStatus,
    InvalidRequest,
    Limits,
    Predict,
    Request,
    Retries,
    Send,
    ServerError,
    Target,
    Tls,
    VersionStatus,
    error_of_code,
)
from serving.errors import Code

DEFAULT_ADDRESS: Final = "127.0.0.1:8500"
SIGNATURES: Final = "signature_def"
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


class GrpcClient(BlockingClient):
    """A blocking client over gRPC. Threads may share it, and then share its channel."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        model: str = DEFAULT_MODEL,
        version: int | None = None,
        label: str | None = None,
        token: str | None = None,
        tls: Tls | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        limits: Limits = DEFAULT_LIMITS,
        retries: Retries = DEFAULT_RETRIES,
    ) -> None:
        """Connects with the first request.

        Args:
          address: `host:port`, or any name that gRPC resolves, such as `dns:///host:port`.
          model: its name on the server.
          version: pins a version; None is the newest.
          label: pins what the server's configuration calls so, for example 'stable'.
          token: sent as `authorization: Bearer`.
          tls: makes the channel a TLS channel; `Tls()` trusts the well-known authorities.
          timeout: seconds that a call may take, retries and all chunks included.
          limits: how much goes into one request.
          retries: when to try again.

        Raises:
          ValueError: the pin or the certificates make no sense.
        """
        super().__init__(
            model=model,
            version=version,
            label=label,
            timeout=timeout,
            limits=limits,
            retries=retries,
        )
        self._metadata = _metadata(address, token=token, tls=tls)
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            credentials = _credentials(tls)
            self._channel = grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
        self._methods = _Methods.on(self._channel)

    def _send(self, send: Send) -> Any:
        message = write_message(send.request)
        try:
            answer = self._methods.of(send.request)(
                message, timeout=send.timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _client_error(error.code(), error.details()) from error
        return read_message(send.request, answer)

    def _close(self) -> None:
        self._channel.close()


class AsyncGrpcClient(AwaitingClient):
    """A client over gRPC for asyncio; its arguments are those of `GrpcClient`."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        model: str = DEFAULT_MODEL,
        version: int | None = None,
        label: str | None = None,
        token: str | None = None,
        tls: Tls | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        limits: Limits = DEFAULT_LIMITS,
        retries: Retries = DEFAULT_RETRIES,
    ) -> None:
        super().__init__(
            model=model,
            version=version,
            label=label,
            timeout=timeout,
            limits=limits,
            retries=retries,
        )
        self._metadata = _metadata(address, token=token, tls=tls)
        self._connection = _AsyncConnection(address, tls)

    async def _send(self, send: Send) -> Any:
        message = write_message(send.request)
        try:
            answer = await self._connection.methods().of(send.request)(
                message, timeout=send.timeout, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _client_error(error.code(), error.details()) from error
        return read_message(send.request, answer)

    async def _close(self) -> None:
        await self._connection.close()


class _Methods(NamedTuple):
    """The remote methods that are used; those of an asyncio channel are to be awaited."""

    predict: Callable[..., Any]
    status: Callable[..., Any]
    metadata: Callable[..., Any]

    @classmethod
    def on(cls, channel: Any) -> "_Methods":
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        return cls(prediction.Predict, models.GetModelStatus, prediction.GetModelMetadata)

    def of(self, request: Request) -> Callable[..., Any]:
        if isinstance(request, Predict):
            return self.predict
        return self.status if isinstance(request, GetStatus) else self.metadata


class _AsyncConnection:
    """A channel made with the first request: it belongs to the event loop of that moment."""

    def __init__(self, address: str, tls: Tls | None) -> None:
        self._address = address
        self._tls = tls
        self._channel: Any = None
        self._methods: _Methods | None = None

    def methods(self) -> _Methods:
        if self._methods is None:
            if self._tls is None:
                self._channel = grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS)
            else:
                self._channel = grpc.aio.secure_channel(
                    self._address, _credentials(self._tls), options=CHANNEL_OPTIONS
                )
            self._methods = _Methods.on(self._channel)
        return self._methods

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


def write_message(request: Request) -> Any:
    """The request as a message of TF Serving's API."""
    spec = _model_spec(request.target)
    if isinstance(request, Predict):
        spec.signature_name = request.signature
        message = predict_pb2.PredictRequest(model_spec=spec, output_filter=request.outputs)
        for name, value in request.inputs.items():
            message.inputs[name].CopyFrom(_tensor(value))
        return message
    if isinstance(request, GetMetadata):
        return get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=[SIGNATURES]
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


def _model_spec(target: Target) -> Any:
    spec = model_pb2.ModelSpec(name=target.model)
    if target.version is not None:
        spec.version.value = target.version
    if target.label is not None:
        spec.version_label = target.label
    return spec


def _tensor(value: list[bytes] | Floats) -> Any:
    """As `tf.make_tensor_proto` does it, without its checks of every element."""
    tensor = tensor_pb2.TensorProto()
    if isinstance(value, np.ndarray):
        tensor.dtype = types_pb2.DT_FLOAT
        tensor.tensor_content = np.ascontiguousarray(value, "<f4").tobytes()
        shape: tuple[int, ...] = value.shape
    else:
        tensor.dtype = types_pb2.DT_STRING
        tensor.string_val.extend(value)
        shape = (len(value),)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def _read_status(status: Any) -> VersionStatus:
    state = get_model_status_pb2.ModelVersionStatus.State.Name(status.state)
    number = status.status.error_code
    code = Code(number) if number in Code.__members__.values() else Code.UNKNOWN
    return VersionStatus(int(status.version), state, code, status.status.error_message)


def _client_error(status: grpc.StatusCode, details: str | None) -> ClientError:
    code = Code(status.value[0])
    message = details or "no explanation"
    if code is Code.RESOURCE_EXHAUSTED and "larger than max" in message:
        # A full queue has room again later; a message never becomes smaller.
        return InvalidRequest(message, code=code)
    return error_of_code(code, message)


def _metadata(address: str, *, token: str | None, tls: Tls | None) -> tuple[tuple[str, str], ...]:
    if token is None:
        return ()
    if tls is None and not _is_loopback(address):
        _log.warning("The bearer token is sent to %s unencrypted: use tls.", address)
    return (("authorization", f"Bearer {token}"),)


def _is_loopback(address: str) -> bool:
    host = address.rsplit(":", 1)[0].rsplit("/", 1)[-1].strip("[]")
    return host in ("127.0.0.1", "localhost", "::1") or address.startswith("unix:")


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    def contents(path: Any) -> bytes | None:
        return None if path is None else path.read_bytes()

    return grpc.ssl_channel_credentials(
        contents(tls.ca), contents(tls.key), contents(tls.certificate)
    )
