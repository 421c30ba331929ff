"""TF Serving's REST API over a model that lives in memory."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from serving.errors import Code, ServingError
from serving.server.metrics import METRICS_PATH
from serving.server.rest.app import rest_app
from serving.server.rest.protocol import RestOptions
from tests.serving.server.rest.fakes import NAME, EchoState, call, signature_map

BASE = f"/v1/models/{NAME}"


@pytest.fixture
def state() -> EchoState:
    return EchoState()


@pytest.fixture
def app(state: EchoState) -> Any:
    return rest_app(state, options=RestOptions())


def predict(app: Any, document: Any, *, path: str = f"{BASE}:predict") -> tuple[int, Any]:
    reply = call(app, "POST", path, json=document)
    assert reply.headers["content-type"] == "application/json"
    return reply.status_code, reply.json()


def test_rows_are_answered_with_predictions_and_columns_with_outputs(app: Any) -> None:
    rows = {"instances": [{"x": 1.0, "y": "a"}, {"x": 2.0, "y": "b"}]}
    assert predict(app, rows) == (200, {"predictions": rows["instances"]})
    columns = {"inputs": {"x": [1.0, 2.0], "y": ["a", "b"]}}
    assert predict(app, columns) == (200, {"outputs": columns["inputs"]})


def test_the_signature_is_chosen_by_name(app: Any) -> None:
    document = {"signature_name": "one", "instances": [[1.0, 2.0]]}
    assert predict(app, document) == (200, {"predictions": [[1.0, 2.0]]})


@pytest.mark.parametrize("where", ["/versions/7", "/labels/stable", "/labels/st%61ble"])
def test_a_version_is_chosen_by_number_or_label(app: Any, where: str) -> None:
    document = {"signature_name": "one", "instances": [1.0]}
    path = f"{BASE}{where}:predict"
    assert predict(app, document, path=path) == (200, {"predictions": [1.0]})


@pytest.mark.parametrize(
    ("path", "document", "status", "message"),
    [
        (f"{BASE}:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        (f"{BASE}:predict", [], 400, "Is not object"),
        (
            f"{BASE}:predict",
            {"signature_name": "no", "instances": [1]},
            400,
            'Serving signature name: "no" not found in signature def',
        ),
        (
            f"{BASE}:predict",
            {"signature_name": "no_inputs", "instances": [1]},
            400,
            "Failed to get input map for signature: no_inputs",
        ),
        ("/v1/models/no:predict", {"instances": [1]}, 404, "Servable not found for request"),
        (f"{BASE}/versions/8:predict", {"instances": [1]}, 404, "Servable not found for request"),
        (
            f"{BASE}/labels/no:predict",
            {"instances": [1]},
            400,
            "Unrecognized servable version label: no",
        ),
        (f"{BASE}:unknown", {}, 400, "Malformed request: POST"),
        (f"{BASE}:classify", {"examples": [{"x": 1.0}]}, 400, f"request: POST {BASE}:classify"),
        (f"{BASE}:regress", {"examples": [{"x": 1.0}]}, 400, f"request: POST {BASE}:regress"),
    ],
)
def test_errors_have_tf_servings_status_and_words(
    app: Any, path: str, document: Any, status: int, message: str
) -> None:
    actual, reply = predict(app, document, path=path)
    assert actual == status
    assert list(reply) == ["error"]
    assert message in reply["error"]


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_every_code_has_its_status(app: Any, state: EchoState, code: Code) -> None:
    state.echo.failure = ServingError(code, 'it "failed"\n\ud800')
    status, reply = predict(app, {"signature_name": "one", "inputs": [1]})
    assert (status, reply) == (code.http, {"error": 'it "failed"\n?'})


def test_a_defect_is_logged_and_not_told(
    app: Any, state: EchoState, caplog: pytest.LogCaptureFixture
) -> None:
    state.echo.failure = ZeroDivisionError("secret")
    status, reply = predict(app, {"signature_name": "one", "inputs": [1]})
    assert (status, reply) == (500, {"error": "Internal error"})
    assert "secret" in caplog.text


def test_a_closing_server_is_unavailable(app: Any, state: EchoState) -> None:
    state.closing = True
    assert predict(app, {"inputs": [1]})[0] == 503
    assert call(app, "GET", BASE).status_code == 200


def test_a_prediction_has_a_deadline(state: EchoState) -> None:
    app = rest_app(state, options=RestOptions(request_seconds=0.0))
    predict(app, {"signature_name": "one", "inputs": [1]})
    assert state.echo.deadlines[0] is not None


def test_status_is_what_tf_serving_prints(app: Any) -> None:
    expected = {
        "model_version_status": [
            {
                "version": "7",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    # TF Serving looks at no label here.
    for path in (BASE, f"{BASE}/versions/7", f"{BASE}/labels/no"):
        reply = call(app, "GET", path)
        assert reply.json() == expected
        json_format.Parse(reply.text, get_model_status_pb2.GetModelStatusResponse())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{BASE}/versions/8", f"Could not find version 8 of model {NAME}"),
        ("/v1/models/no", "Could not find any versions of model no"),
        ("/v1/models/no/versions/8", "Could not find version 8 of model no"),
        ("/v1/models/no/metadata", "Servable not found for request: Latest(no)"),
    ],
)
def test_the_status_of_what_is_not_there_is_404(app: Any, path: str, message: str) -> None:
    reply = call(app, "GET", path)
    assert (reply.status_code, reply.json()) == (404, {"error": message})


@pytest.mark.parametrize("where", ["", "/versions/7", "/labels/stable"])
def test_metadata_lists_every_signature(app: Any, where: str) -> None:
    reply = call(app, "GET", f"{BASE}{where}/metadata").json()
    assert reply["model_spec"] == {"name": NAME, "signature_name": "", "version": "7"}
    assert list(reply) == ["model_spec", "metadata"]
    signatures = json_format.ParseDict(
        reply["metadata"]["signature_def"], get_model_metadata_pb2.SignatureDefMap()
    )
    assert signatures == signature_map()
    one = reply["metadata"]["signature_def"]["signature_def"]["one"]
    assert one["inputs"]["x"] == {
        "name": "one_x:0",
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
    }
    assert one["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/models", 400),
        ("GET", "/v1/models/", 400),
        ("GET", f"{BASE}/", 400),
        ("GET", f"{BASE}:predict", 400),
        ("POST", BASE, 400),
        ("DELETE", BASE, 400),
        ("OPTIONS", f"{BASE}:predict", 400),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/models/%2e%2e", 404),
        ("GET", "/v1/models/a%0Ab", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/v1/models/%ff%fe", 404),
        ("GET", "/v1/models/'; DROP TABLE models; --", 404),
        ("GET", "/v1/models/" + "a" * 20_000, 404),
        ("GET", f"{BASE}/versions/99999999999999999999", 400),
        ("GET", f"{BASE}/versions/-1", 400),
        ("POST", METRICS_PATH, 405),
    ],
)
def test_tricks_with_paths_are_answered_cleanly(
    app: Any, method: str, path: str, status: int
) -> None:
    reply = call(app, method, path)
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]


def test_requests_are_counted(app: Any) -> None:
    predict(app, {"signature_name": "one", "inputs": [1]})
    predict(app, {})
    predict(app, {}, path="/v1/models/no:predict")
    reply = call(app, "GET", METRICS_PATH)
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.text)
    counts = {
        (sample.labels["model_name"], sample.labels["status"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == ":tensorflow:serving:request_count"
    }
    assert counts == {
        (NAME, "OK"): 1,
        (NAME, "INVALID_ARGUMENT"): 1,
        ("(unknown)", "NOT_FOUND"): 1,
    }


def own_routes() -> list[Route]:
    async def hello(request: Request) -> Response:
        if "fail" in request.query_params:
            raise ServingError(Code.NOT_FOUND, "nobody")
        return PlainTextResponse(f"hello {(await request.body()).decode()}")

    return [Route("/v1/hello", hello, methods=["POST"])]


def test_routes_of_ones_own_stand_beside_the_models(state: EchoState) -> None:
    app = rest_app(state, options=RestOptions(token="t"), routes=own_routes())
    assert call(app, "POST", "/v1/hello", content=b"you").status_code == 401
    token = {"Authorization": "Bearer t"}
    assert call(app, "POST", "/v1/hello", content=b"you", headers=token).text == "hello you"
    reply = call(app, "POST", "/v1/hello?fail=1", headers=token)
    assert (reply.status_code, reply.json()) == (404, {"error": "nobody"})
    assert call(app, "GET", "/v1/hello", headers=token).status_code == 405


def test_strings_are_sent_and_received_as_base64(app: Any) -> None:
    document = {"signature_name": "words", "inputs": [{"b64": "AP8="}]}
    status, reply = predict(app, document)
    assert status == 200
    assert reply["outputs"] == {"word": ["\0\ufffd"], "word_bytes": [{"b64": "AP8="}]}


def test_nan_goes_in_and_comes_out(app: Any) -> None:
    body = b'{"signature_name": "one", "instances": [NaN, -Infinity, 0.2]}'
    reply = call(app, "POST", f"{BASE}:predict", content=body)
    assert json.dumps(reply.json()["predictions"]) == "[NaN, -Infinity, 0.2]"
