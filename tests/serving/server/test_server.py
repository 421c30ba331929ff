"""The local server through its sockets."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.server.batching import BatchingOptions
from serving.server.models import ModelSetup
from serving.server.rest.protocol import RestOptions
from serving.server.server import LocalServer, ServerOptions, TlsFiles
from serving.server.versions import HostOptions, Policy
from tests.serving.certificates import make_certificate
from tests.serving.server.word_model import export_word_model, push

PATIENCE = 120.0
OK = grpc.StatusCode.OK


class Stubs:
    """TF Serving's gRPC services at an address."""

    def __init__(self, channel: grpc.Channel) -> None:
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.predict = prediction.Predict
        self.classify = prediction.Classify
        self.regress = prediction.Regress
        self.multi_inference = prediction.MultiInference
        self.metadata = prediction.GetModelMetadata
        self.status = models.GetModelStatus
        self.reload = models.HandleReloadConfigRequest


@contextmanager
def stubs(server: LocalServer) -> Iterator[Stubs]:
    with grpc.insecure_channel(server.grpc_target) as channel:
        yield Stubs(channel)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_word_model(tmp_path_factory.mktemp("export") / "model", offset=100)


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    base_path = tmp_path_factory.mktemp("words")
    push(exported, base_path, 1)
    push(exported, base_path, 2)
    with serving(
        base_path, host=HostOptions(policy=Policy(latest=None), labels={"stable": 1})
    ) as server:
        yield server


@contextmanager
def serving(base_path: Path, *, host: HostOptions | None = None, **options: Any) -> Any:
    models = {"words": ModelSetup(base_path, host or HostOptions(poll_seconds=0.05))}
    with LocalServer(ServerOptions(models, grpc_port=0, rest_port=0, **options)) as server:
        assert server.state.hosts["words"].wait_settled(PATIENCE)
        yield server


@pytest.fixture
def call(server: LocalServer) -> Iterator[Stubs]:
    with stubs(server) as found:
        yield found


def predict_request(*words: bytes, **spec: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    _fill(request.model_spec, spec)
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(list(words), shape=[len(words)]))
    return request


def _fill(spec: Any, values: dict[str, Any]) -> None:
    spec.name = values.get("name", "words")
    spec.signature_name = values.get("signature", "")
    if "version" in values:
        spec.version.value = values["version"]
    if "label" in values:
        spec.version_label = values["label"]


def refusal(method: Callable[..., Any], request: Any, **options: Any) -> tuple[Any, str]:
    with pytest.raises(grpc.RpcError) as error:
        method(request, timeout=PATIENCE, **options)
    return error.value.code(), error.value.details()


def test_predict_answers_with_the_version_and_signature_that_answered(call: Stubs) -> None:
    response = call.predict(predict_request(b"abc", b"z"), timeout=PATIENCE)
    assert response.model_spec.name == "words"
    assert response.model_spec.version.value == 2
    assert response.model_spec.signature_name == "serving_default"
    assert tf.make_ndarray(response.outputs["length"]).tolist() == [103, 101]
    assert list(response.outputs["length"].int_val) == [103, 101]
    assert list(response.outputs["word"].string_val) == [b"abc", b"z"]
    pinned = call.predict(predict_request(b"a", label="stable"), timeout=PATIENCE)
    assert pinned.model_spec.version.value == 1


def test_only_the_outputs_asked_for_are_sent(call: Stubs) -> None:
    request = predict_request(b"abc")
    request.output_filter.append("length")
    assert list(call.predict(request, timeout=PATIENCE).outputs) == ["length"]
    request.output_filter.append("length")
    assert refusal(call.predict, request)[1] == "duplicate output tensor alias: length"
    request.output_filter[:] = ["size"]
    code, message = refusal(call.predict, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == (
        "output tensor alias not found in signature: size Outputs expected to be in the set "
        "{length,word}."
    )


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ({"name": ""}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ({"name": "x"}, "NOT_FOUND", "Servable not found for request: Latest(x)"),
        ({"version": 7}, "NOT_FOUND", "Servable not found for request: Specific(words, 7)"),
        (
            {"name": "x", "version": 7},
            "NOT_FOUND",
            "Servable not found for request: Specific(x, 7)",
        ),
        ({"label": "x"}, "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
        ({"name": "x", "label": "y"}, "INVALID_ARGUMENT", "Unrecognized servable version label: y"),
        ({"signature": "x"}, "FAILED_PRECONDITION", 'Serving signature key "x" not found.'),
    ],
)
def test_errors_have_tf_servings_codes_and_messages(
    call: Stubs, spec: dict[str, Any], code: str, message: str
) -> None:
    assert refusal(call.predict, predict_request(b"a", **spec)) == (
        grpc.StatusCode[code],
        message,
    )


def test_long_messages_are_cut(call: Stubs) -> None:
    code, message = refusal(call.predict, predict_request(b"a", signature="x" * 5000))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert message == 'Serving signature key "' + "x" * 1001 + "...TRUNCATED"


def test_what_the_graph_refuses_is_the_clients_error(call: Stubs) -> None:
    code, message = refusal(call.predict, predict_request(b"a", b""))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "empty word" in message
    request = predict_request(b"a")
    request.inputs["text"].tensor_shape.dim[0].size = 5000000
    assert refusal(call.predict, request)[1] == "tensor parsing error: text"


def test_what_no_model_has_a_signature_for_is_unimplemented(call: Stubs) -> None:
    for method, request in (
        (call.classify, classification_pb2.ClassificationRequest()),
        (call.regress, regression_pb2.RegressionRequest()),
        (call.multi_inference, inference_pb2.MultiInferenceRequest()),
    ):
        assert refusal(method, request) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "Only Predict is served: no model here has a signature for anything else",
        )


def test_metadata_is_packed_as_a_signature_map(call: Stubs) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "words"
    response = call.metadata(request, timeout=PATIENCE)
    assert response.model_spec.version.value == 2
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["sum"].method_name == "tensorflow/serving/predict"
    request.metadata_field[:] = ["weights"]
    assert refusal(call.metadata, request)[1] == "Metadata field weights is not supported"
    request.metadata_field[:] = []
    assert "at least one metadata_field" in refusal(call.metadata, request)[1]
    request.Clear()
    assert refusal(call.metadata, request)[1] == "Missing ModelSpec"


def test_status_lists_versions_newest_first(call: Stubs) -> None:
    request = get_model_status_pb2.GetModelStatusRequest()
    assert refusal(call.status, request)[1] == "Missing ModelSpec"
    request.model_spec.name = "words"
    statuses = call.status(request, timeout=PATIENCE).model_version_status
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [(s.version, s.state, s.status.error_code) for s in statuses] == [
        (2, available, 0),
        (1, available, 0),
    ]
    request.model_spec.version.value = 9
    assert refusal(call.status, request) == (
        grpc.StatusCode.NOT_FOUND,
        "Could not find version 9 of model words",
    )
    request.model_spec.name = "x"
    request.model_spec.ClearField("version")
    assert refusal(call.status, request)[1] == "Could not find any versions of model x"


def test_rest_and_grpc_are_one_server(server: LocalServer, call: Stubs) -> None:
    url = f"{server.rest_url}/v1/models/words"
    answer = httpx.post(f"{url}:predict", json={"inputs": ["abc"]}, timeout=PATIENCE).json()
    assert answer["outputs"]["length"] == [103]
    before = _requests_counted(server)
    call.predict(predict_request(b"a"), timeout=PATIENCE)
    httpx.post(f"{url}:predict", json={"inputs": ["abc"]}, timeout=PATIENCE)
    assert _requests_counted(server) == before + 2


def _requests_counted(server: LocalServer) -> float:
    text = httpx.get(f"{server.rest_url}/monitoring/prometheus/metrics").text
    (line,) = [
        line
        for line in text.splitlines()
        if line.startswith(":tensorflow:serving:request_count{")
        and 'model_name="words"' in line
        and 'status="OK"' in line
    ]
    return float(line.rsplit(" ", 1)[1])


def test_a_reloaded_configuration_replaces_the_models(exported: Path, tmp_path: Path) -> None:
    for name in ("words", "more"):
        (tmp_path / name).mkdir()
        push(exported, tmp_path / name, 1)
    push(exported, tmp_path / "words", 2)
    request = model_management_pb2.ReloadConfigRequest()
    models = request.config.model_config_list
    kept = models.config.add(name="words", base_path=str(tmp_path / "words"))
    kept.model_version_policy.all.SetInParent()
    kept.version_labels["stable"] = 1
    with serving(tmp_path / "words") as server, stubs(server) as call:
        assert refusal(call.predict, predict_request(b"a", label="stable"))[1].endswith("stable")
        assert call.reload(request, timeout=PATIENCE).status.error_code == 0
        answer = call.predict(predict_request(b"a", label="stable"), timeout=PATIENCE)
        assert answer.model_spec.version.value == 1
        assert call.predict(predict_request(b"a")).model_spec.version.value == 2

        kept.version_labels["canary"] = 3
        assert refusal(call.reload, request) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "Request to assign label to version 3 of model words, which is not currently "
            "available for inference",
        )
        assert call.predict(predict_request(b"a", label="stable")).model_spec.version.value == 1
        del kept.version_labels["canary"]
        kept.model_version_policy.specific.versions.append(2)
        assert "label to version 1 of model words" in refusal(call.reload, request)[1]
        assert call.predict(predict_request(b"a", label="stable")).model_spec.version.value == 1

        del models.config[:]
        models.config.add(name="more", base_path=str(tmp_path / "more"))
        assert call.reload(request, timeout=PATIENCE).status.error_code == 0
        assert call.predict(predict_request(b"a", name="more")).model_spec.version.value == 1
        assert refusal(call.predict, predict_request(b"a"))[0] is grpc.StatusCode.NOT_FOUND

        models.config.add(name="empty", base_path=str(tmp_path))
        code, message = refusal(call.reload, request)
        assert (code, message) == (
            grpc.StatusCode.UNKNOWN,
            "Some models did not become available: {empty}",
        )
        assert call.predict(predict_request(b"a", name="more")).model_spec.version.value == 1
        request.Clear()
        assert "Only ModelConfigList" in refusal(call.reload, request)[1]


def test_labels_may_wait_for_their_version_if_they_are_new(exported: Path, tmp_path: Path) -> None:
    push(exported, tmp_path, 1)
    request = model_management_pb2.ReloadConfigRequest()
    model = request.config.model_config_list.config.add(name="words", base_path=str(tmp_path))
    model.version_labels["next"] = 2
    with serving(tmp_path, labels_may_wait=True) as server, stubs(server) as call:
        call.reload(request, timeout=PATIENCE)
        code, message = refusal(call.predict, predict_request(b"a", label="next"))
        assert code is grpc.StatusCode.NOT_FOUND
        assert message == "Servable not found for request: Specific(words, 2)"
        model.version_labels["next"] = 3
        assert refusal(call.reload, request)[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_the_token_is_asked_for_by_both_protocols(exported: Path, tmp_path: Path) -> None:
    push(exported, tmp_path, 1)
    with serving(tmp_path, token="s3cret") as server, stubs(server) as call:
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        for metadata in ([], [("authorization", "Bearer wrong")], [("authorization", "s3cret")]):
            code, _ = refusal(call.predict, predict_request(b"a"), metadata=metadata)
            assert code is unauthenticated
            assert refusal(call.status, get_model_status_pb2.GetModelStatusRequest())[0] is code
        right = [("authorization", "Bearer s3cret")]
        assert call.predict(predict_request(b"a"), metadata=right).model_spec.name == "words"
        url = f"{server.rest_url}/v1/models/words/metadata"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_with_a_certificate_both_protocols_answer_tls_only(exported: Path, tmp_path: Path) -> None:
    push(exported, tmp_path, 1)
    certificate, key = make_certificate(tmp_path)
    with serving(tmp_path, tls=TlsFiles(certificate, key)) as server:
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(server.grpc_target, credentials) as channel:
            assert Stubs(channel).predict(predict_request(b"a"), timeout=PATIENCE).outputs
        assert server.rest_url.startswith("https://")
        answer = httpx.get(f"{server.rest_url}/v1/models/words", verify=str(certificate))
        assert answer.status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{server.rest_port}/v1/models/words")


def test_a_message_larger_than_allowed_is_refused(exported: Path, tmp_path: Path) -> None:
    push(exported, tmp_path, 1)
    with serving(tmp_path, max_message_bytes=10_000) as server, stubs(server) as call:
        code, _ = refusal(call.predict, predict_request(b"x" * 20_000))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call.predict(predict_request(b"x" * 5_000), timeout=PATIENCE).outputs


def test_a_full_queue_refuses_in_both_protocols(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(exported, tmp_path, 1)
    batching = BatchingOptions(max_batch_size=1, max_enqueued_batches=1, num_batch_threads=1)
    with (
        held_runs(monkeypatch) as hold,
        serving(tmp_path, host=HostOptions(batching=batching)) as server,
        stubs(server) as call,
    ):
        hold.begin()
        running = call.predict.future(predict_request(b"a"))
        hold.wait_until_running()
        waiting = call.predict.future(predict_request(b"b"))
        url = f"{server.rest_url}/v1/models/words:predict"
        refused = _until_refused(lambda: httpx.post(url, json={"inputs": ["c"]}, timeout=0.2))
        assert refused.status_code == 429
        code, message = refusal(call.predict, predict_request(b"c"))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "submitted is full" in message
        hold.end()
        assert running.result(PATIENCE).outputs
        assert waiting.result(PATIENCE).outputs


def test_calls_beyond_the_limit_are_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(exported, tmp_path, 1)
    with (
        held_runs(monkeypatch) as hold,
        serving(tmp_path, max_calls=1) as server,
        stubs(server) as call,
    ):
        hold.begin()
        running = call.predict.future(predict_request(b"a"))
        hold.wait_until_running()
        assert refusal(call.predict, predict_request(b"b"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        hold.end()
        assert running.result(PATIENCE).outputs
        assert call.predict(predict_request(b"b"), timeout=PATIENCE).outputs


def _until_refused(post: Callable[[], httpx.Response]) -> httpx.Response:
    """Until then one of these requests may itself be the one that waits in the queue."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            return post()
        except httpx.ReadTimeout:
            continue
    raise AssertionError("never refused")


class Hold:
    """Keeps runs of a model from going on."""

    def __init__(self) -> None:
        self._go = threading.Event()
        self._go.set()
        self._running = threading.Event()

    def begin(self) -> None:
        self._running.clear()
        self._go.clear()

    def end(self) -> None:
        self._go.set()

    def wait_until_running(self) -> None:
        assert self._running.wait(PATIENCE)

    def __call__(self) -> None:
        self._running.set()
        assert self._go.wait(PATIENCE)


@contextmanager
def held_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    from serving.saved_model.loader import LoadedModel

    hold = Hold()
    run = LoadedModel.run

    def held(self: LoadedModel, signature: str, inputs: Any) -> Any:
        hold()
        return run(self, signature, inputs)

    monkeypatch.setattr(LoadedModel, "run", held)
    try:
        yield hold
    finally:
        hold.end()


def test_a_deadline_that_passes_is_told_and_the_request_not_run(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(exported, tmp_path, 1)
    batching = BatchingOptions(num_batch_threads=1)
    with (
        held_runs(monkeypatch) as hold,
        serving(
            tmp_path,
            host=HostOptions(batching=batching),
            rest=RestOptions(request_seconds=0.2),
        ) as server,
        stubs(server) as call,
    ):
        hold.begin()
        running = call.predict.future(predict_request(b"a"))
        hold.wait_until_running()
        with pytest.raises(grpc.RpcError) as error:
            call.predict(predict_request(b""), timeout=0.2)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        url = f"{server.rest_url}/v1/models/words:predict"
        late = httpx.post(url, json={"inputs": [""]}, timeout=PATIENCE)
        assert late.status_code == 504
        hold.end()
        assert running.result(PATIENCE).outputs


def test_requests_under_way_are_finished_when_the_server_stops(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(exported, tmp_path, 1)
    with (
        held_runs(monkeypatch) as hold,
        serving(tmp_path) as server,
        stubs(server) as call,
        httpx.Client(timeout=PATIENCE) as client,
    ):
        hold.begin()
        by_grpc = call.predict.future(predict_request(b"abc"))
        by_rest: list[httpx.Response] = []
        url = f"{server.rest_url}/v1/models/words:predict"
        posting = threading.Thread(
            target=lambda: by_rest.append(client.post(url, json={"inputs": ["abc"]}))
        )
        posting.start()
        hold.wait_until_running()
        _until(lambda: _under_way(server) == 2)
        closing = threading.Thread(target=server.close)
        closing.start()
        _until(lambda: _refuses_connections(server))
        hold.end()
        closing.join(PATIENCE)
        posting.join(PATIENCE)
        assert list(by_grpc.result(PATIENCE).outputs["length"].int_val) == [103]
        assert by_rest[0].json()["outputs"]["length"] == [103]


def _under_way(server: LocalServer) -> int:
    host = server.state.hosts["words"]
    return sum(served.requests for served in host._loaded.values())


def _refuses_connections(server: LocalServer) -> bool:
    try:
        httpx.get(f"{server.rest_url}/v1/models/words", timeout=5)
    except httpx.ConnectError:
        return True
    return False


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_taken_port_is_named(server: LocalServer, tmp_path: Path) -> None:
    models = {"words": ModelSetup(tmp_path, HostOptions())}
    with pytest.raises(OSError, match=rf"REST cannot listen on .*:{server.rest_port}"):
        LocalServer(ServerOptions(models, grpc_port=0, rest_port=server.rest_port))
    with pytest.raises(OSError, match=rf"gRPC cannot listen on .*:{server.grpc_port}"):
        LocalServer(ServerOptions(models, grpc_port=server.grpc_port, rest_port=0))


def test_an_unforeseen_error_is_internal_and_says_nothing(
    server: LocalServer,
    call: Stubs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret path /srv/models")

    monkeypatch.setattr(server.state, "host", fail)
    with caplog.at_level(logging.ERROR, "serving"):
        assert refusal(call.predict, predict_request(b"a")) == (
            grpc.StatusCode.INTERNAL,
            "Internal error",
        )
    assert "secret path" in caplog.text


def test_many_clients_at_once_each_get_their_own_answer(call: Stubs) -> None:
    futures = {
        size: call.predict.future(
            predict_request(*[b"x" * size] * (1 + size % 3)), timeout=PATIENCE
        )
        for size in range(1, 200)
    }
    for size, future in futures.items():
        lengths = np.array(future.result(PATIENCE).outputs["length"].int_val)
        np.testing.assert_array_equal(lengths, [100 + size] * (1 + size % 3))
