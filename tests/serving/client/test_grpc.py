"""What is special to gRPC: messages, channels and TLS."""

import logging
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from serving.client.grpc import AsyncGrpcClient, GrpcClient, read_message, write_message
from serving.client.types import (
    GetMetadata,
    GetStatus,
    InvalidRequest,
    Overloaded,
    Predict,
    Retries,
    ServerError,
    Target,
    Tls,
    Unavailable,
)
from serving.errors import Code, ServingError
from tests.serving.certificates import make_certificate
from tests.serving.client.fake_server import FakeModel, grpc_server

pytestmark = pytest.mark.usefixtures("raw_bytes")


def test_a_prediction_is_written_as_tensorflow_writes_tensors() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    inputs = {"image": [b"a\0", b""], "vectors": vectors[:, ::-1]}
    message = write_message(Predict(Target("m", version=3), "embed", inputs, ("embedding",)))
    assert message.model_spec.version.value == 3
    assert message.model_spec.signature_name == "embed"
    assert list(message.output_filter) == ["embedding"]
    images = tf.make_ndarray(message.inputs["image"])
    assert images.tolist() == [b"a\0", b""]
    np.testing.assert_array_equal(tf.make_ndarray(message.inputs["vectors"]), vectors[:, ::-1])


def test_labels_are_sent_except_for_a_status() -> None:
    target = Target("m", label="stable")
    assert write_message(GetMetadata(target)).model_spec.version_label == "stable"
    assert write_message(GetStatus(target)).model_spec.version_label == ""


@pytest.mark.parametrize("as_content", [True, False])
def test_tensors_are_read_in_either_form(as_content: bool) -> None:
    answer = predict_pb2.PredictResponse()
    values = np.array([0.25, -3], np.float32)
    tensor = tf.make_tensor_proto(values)
    if not as_content:
        tensor.ClearField("tensor_content")
        tensor.float_val.extend(values.tolist())
    answer.outputs["score"].CopyFrom(tensor)
    read = read_message(Predict(Target("m"), "s", {}, ("score",)), answer)
    np.testing.assert_array_equal(read["score"], values)


def test_an_answer_of_strings_is_the_servers_fault() -> None:
    answer = predict_pb2.PredictResponse()
    answer.outputs["score"].CopyFrom(tf.make_tensor_proto([b"x"]))
    with pytest.raises(ServerError):
        read_message(Predict(Target("m"), "s", {}, ("score",)), answer)


def test_a_status_is_read_with_its_reason() -> None:
    answer = get_model_status_pb2.GetModelStatusResponse()
    status = answer.model_version_status.add(version=3, state=50)
    status.status.error_code = Code.DATA_LOSS
    status.status.error_message = "variables are missing"
    assert read_message(GetStatus(Target("m")), answer) == [
        (3, "END", Code.DATA_LOSS, "variables are missing")
    ]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Received message larger than max (5 vs. 4)", InvalidRequest),
        ("The batch queue is full", Overloaded),
    ],
)
def test_a_message_that_is_too_large_is_not_sent_again(
    message: str, expected: type[Exception]
) -> None:
    model = FakeModel(failures=[ServingError(Code.RESOURCE_EXHAUSTED, message)] * 9)
    with grpc_server(model) as address:
        retries = Retries(attempts=2, first_pause=0.001)
        with GrpcClient(address, retries=retries) as client, pytest.raises(expected):
            client.embed(b"a")
    assert len(model.calls) == (1 if expected is InvalidRequest else 2)


def test_tls_is_spoken_and_the_certificate_checked(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    once = Retries(attempts=1)
    with grpc_server(FakeModel(), credentials=credentials) as address:
        with GrpcClient(address, tls=Tls(ca=certificate)) as client:
            assert client.embed(b"a").shape == (1, 3)
        with GrpcClient(address, tls=Tls(), retries=once) as client, pytest.raises(Unavailable):
            client.embed(b"a")
        with GrpcClient(address, retries=once) as client, pytest.raises(Unavailable):
            client.embed(b"a")


@pytest.mark.parametrize("cls", [GrpcClient, AsyncGrpcClient])
@pytest.mark.parametrize(
    ("address", "warned"),
    [
        ("127.0.0.1:8500", False),
        ("localhost:8500", False),
        ("[::1]:8500", False),
        ("unix:/run/server", False),
        ("dns:///server:8500", True),
        ("server:8500", True),
    ],
)
def test_a_token_without_tls_is_warned_of_unless_it_stays_on_the_machine(
    cls: type, address: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        cls(address, token="secret")
    assert ("unencrypted" in caplog.text) is warned
    assert "secret" not in caplog.text
