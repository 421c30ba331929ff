"""REST's own rules: JSON, base64, paths, errors."""

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serving.contract.api import Api, RestApi
from tests.serving.contract.images import drawings

IMAGE = drawings(1)[0]
B64 = {"b64": base64.b64encode(IMAGE).decode()}
PAIR = {"image_a": B64, "image_b": B64}


def post(rest: RestApi, body: Any, *, method: str = "predict", path: str = "") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return rest.http.post(path or f"{rest.path()}:{method}", content=content)


def embedding(rest: RestApi, **body: Any) -> Any:
    reply = post(rest, {"signature_name": "embed", **body})
    assert reply.status_code == 200, reply.text
    document = reply.json()
    return np.array(document["predictions"] if "predictions" in document else document["outputs"])


def error_of(reply: httpx.Response, *, status: int = 400) -> str:
    assert reply.status_code == status
    assert reply.headers["content-type"].startswith("application/json")
    document = reply.json()
    assert list(document) == ["error"]
    message: str = document["error"]
    return message


def test_rows_of_several_outputs_are_objects(rest: RestApi) -> None:
    document = post(rest, {"instances": [PAIR, PAIR]}).json()
    assert list(document) == ["predictions"]
    assert [set(row) for row in document["predictions"]] == [{"score", "logit"}] * 2
    assert all(isinstance(row["score"], float) for row in document["predictions"])


def test_rows_of_one_output_are_bare(rest: RestApi) -> None:
    assert embedding(rest, instances=[B64, B64]).ndim == 2


def test_columns_are_answered_with_columns(rest: RestApi) -> None:
    document = post(rest, {"inputs": {"image_a": [B64], "image_b": [B64]}}).json()
    assert list(document) == ["outputs"]
    assert set(document["outputs"]) == {"score", "logit"}


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [B64]},
        {"instances": [{"image": B64}]},
        {"inputs": [B64]},
        {"inputs": {"image": [B64]}},
        {"inputs": {"image": [B64], "unused": "x"}},
        {"instances": [B64], "unused": "x"},
    ],
)
def test_a_single_input_may_be_named_or_not(rest: RestApi, body: dict[str, Any]) -> None:
    np.testing.assert_allclose(embedding(rest, **body), embedding(rest, instances=[B64]), atol=1e-4)


def test_base64_needs_no_padding(rest: RestApi) -> None:
    # A picture whose base64 ends in padding: the decoder must not insist on it.
    padded = base64.b64encode(IMAGE + bytes((1 - len(IMAGE)) % 3)).decode()
    assert padded.endswith("==")
    bare = {"b64": padded.rstrip("=")}
    np.testing.assert_allclose(
        embedding(rest, instances=[bare]), embedding(rest, instances=[B64]), atol=1e-4
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error"),
        (b"instances = [1, 2]", "JSON Parse error"),
        (b'{"instances": [1', "JSON Parse error"),
        (b"[]", "Is not object"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instances": [PAIR], "inputs": PAIR}, "only one of"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": 3}, "to be an list/array"),
        ({"instances": [1, 2]}, "instances is a plain list, but expecting list of objects"),
        ({"inputs": [1, 2]}, "inputs is a plain value/list, but expecting an object"),
        ({"inputs": {"image_a": [B64]}}, "Missing named input: image_b"),
        ({"instances": [{"image_a": B64}]}, "keys must be equal to"),
        ({"instances": [{**PAIR, "image_c": B64}]}, "image_c"),
        ({"instances": [PAIR, 3]}, "Expecting object but got list at item 1"),
        ({"signature_name": 100, "instances": [PAIR]}, "'signature_name' key must be a string"),
        ({"signature_name": "embed", "instances": [3]}, "is not of expected type: string"),
        ({"signature_name": "embed", "instances": [{"b64": "!"}]}, "Unable to base64 decode"),
        ({"signature_name": "embed", "instances": [{"image": {"b64": 1}}]}, "base64"),
        ({"signature_name": "embed", "instances": [{"image": {**B64, "x": 1}}]}, "base64"),
        ({"signature_name": "embed", "instances": [[B64], B64]}, "process element: 1"),
        (
            {"signature_name": "match", "inputs": {"embedding_a": [["1"]], "embedding_b": [[1]]}},
            "is not of expected type: float",
        ),
        (
            {"signature_name": "match", "inputs": {"embedding_a": [[1], [1, 2]]}},
            "unexpected size",
        ),
        (
            {"signature_name": "match", "inputs": {"embedding_a": [[1e39]]}},
            "without loss of precision",
        ),
    ],
)
def test_a_wrong_body_is_explained(rest: RestApi, body: Any, message: str) -> None:
    assert message in error_of(post(rest, body))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/foo"),
        ("POST", "/v1/models"),
        ("GET", "/v1/models/siamese:predict"),
        ("POST", "/v1/models/siamese:unknown"),
        ("POST", "/v1/models/siamese/versions/HELLO:predict"),
        ("POST", "/v1/models/siamese/version/50:predict"),
        ("GET", "/v1/models/siamese/versions/1/labels/stable"),
    ],
)
def test_what_is_no_path_of_the_api_is_malformed(rest: RestApi, method: str, path: str) -> None:
    assert "Malformed request" in error_of(rest.http.request(method, path))


def test_a_model_must_be_named(rest: RestApi) -> None:
    assert "Missing model name" in error_of(rest.http.get("/v1/models"))


def test_a_version_must_fit_64_bits(rest: RestApi) -> None:
    path = f"{rest.path()}/versions/{2**64}:predict"
    assert "Failed to convert version" in error_of(post(rest, {}, path=path))


@pytest.mark.parametrize("name", ["..%2F..%2Fetc%2Fpasswd", "%2E%2E", "a%20b", "%27%3B--"])
def test_a_name_is_a_name_whatever_is_in_it(rest: RestApi, name: str) -> None:
    reply = post(rest, {"instances": [PAIR]}, path=f"/v1/models/{name}:predict")
    assert "Servable not found for request" in error_of(reply, status=404)


def test_nothing_is_found_outside_v1(rest: RestApi) -> None:
    assert rest.http.get("/").status_code == 404
    assert rest.http.get("/v2/models").status_code == 404


def test_status_is_json_with_versions_as_strings(rest: RestApi) -> None:
    document = rest.http.get(rest.path()).json()
    entry = next(e for e in document["model_version_status"] if e["state"] == "AVAILABLE")
    assert entry["version"].isdecimal()
    assert entry["status"] == {"error_code": "OK", "error_message": ""}


def test_metadata_is_json_with_sizes_as_strings(rest: RestApi) -> None:
    document = rest.http.get(f"{rest.path()}/metadata").json()
    assert document["model_spec"]["version"].isdecimal()
    signatures = document["metadata"]["signature_def"]["signature_def"]
    image = signatures["embed"]["inputs"]["image"]
    assert image["dtype"] == "DT_STRING"
    assert image["tensor_shape"]["dim"][0]["size"] == "-1"
    assert image["tensor_shape"]["unknown_rank"] is False
    assert signatures["embed"]["method_name"] == "tensorflow/serving/predict"


def test_a_connection_is_kept(rest: RestApi) -> None:
    addresses = set()
    for _ in range(3):
        stream = rest.http.get(rest.path()).extensions["network_stream"]
        addresses.add(stream.get_extra_info("client_addr"))
    assert len(addresses) == 1


def test_bodies_may_come_in_pieces(rest: RestApi) -> None:
    body = json.dumps({"signature_name": "embed", "instances": [B64]}).encode()
    pieces = (body[at : at + 100] for at in range(0, len(body), 100))
    reply = rest.http.post(f"{rest.path()}:predict", content=pieces)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json; charset=UTF-8"},
    ],
    ids=["h2c", "text", "charset"],
)
def test_bodies_are_read_whatever_the_headers_say(rest: RestApi, headers: dict[str, str]) -> None:
    # Some platforms begin every text with a byte order mark.
    body = json.dumps({"signature_name": "embed", "instances": [B64]}).encode("utf-8-sig")
    for _ in range(2):
        reply = rest.http.post(f"{rest.path()}:predict", content=body, headers=headers)
        assert reply.status_code == 200, reply.text


def test_what_the_api_answers_is_what_the_helper_reads(api: Api, rest: RestApi) -> None:
    answer = api.predict("embed", {"image": drawings(1)})["embedding"]
    np.testing.assert_allclose(embedding(rest, instances=[B64]), answer, atol=1e-4)
