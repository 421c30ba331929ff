"""Whatever is sent, the server lives, and never says that the fault is its own.

On the local server only: it is its parsers that are tried, and nobody should have rubbish thrown at
their TF Serving. `FUZZ_EXAMPLES=20000` tries harder than the default.
"""

import base64
import json
import os
import struct
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2

from tests.serving.contract.api import GrpcApi, Refused, RestApi
from tests.serving.contract.images import BAD, claimed, drawings, encoded

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

NAMES = ["instances", "inputs", "signature_name", "image", "image_a", "image_b", "b64", "examples"]
SIGNATURES = ["serving_default", "embed", "match", "examples", ""]
GOOD = base64.b64encode(drawings(1)[0]).decode()
FILES = [drawings(1)[0], encoded("RGBA", "png"), encoded("P", "png"), encoded("RGB", "jpeg")]

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(SIGNATURES),
    st.just({"b64": GOOD}),
    st.builds(lambda data: {"b64": base64.b64encode(data).decode()}, st.binary(max_size=50)),
)
documents = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=5)), inner, max_size=4),
    ),
    max_leaves=12,
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Bodies that are nearly right."""
    body = {draw(st.sampled_from(["instances", "inputs", "examples"])): draw(documents)}
    if draw(st.booleans()):
        body["signature_name"] = draw(st.one_of(st.sampled_from(SIGNATURES), documents))
    return body


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A good file with bytes overwritten, cut out, doubled or cut off."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.binary(min_size=1, max_size=8))
        match draw(st.sampled_from(["overwrite", "insert", "remove", "cut"])):
            case "overwrite":
                data[at : at + len(piece)] = piece
            case "insert":
                data[at:at] = piece
            case "remove":
                del data[at : at + len(piece)]
            case "cut":
                del data[at:]
    return bytes(data)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """PNGs that claim any size, depth and colour type."""
    size = st.one_of(st.integers(0, 5000), st.integers(0, 2**32 - 1))
    made = bytearray(claimed(draw(size), draw(size)))
    made[24:29] = bytes(draw(st.integers(0, 255)) for _ in range(5))
    return bytes(made)


@pytest.fixture(autouse=True)
def survivor(rest: RestApi) -> Any:
    """A good request is answered after everything that a case has tried."""
    yield
    reply = post(rest, json.dumps({"signature_name": "embed", "instances": [{"b64": GOOD}]}))
    assert reply.status_code == 200


def post(rest: RestApi, content: str | bytes) -> httpx.Response:
    return rest.http.post(f"{rest.path()}:predict", content=content)


def check(reply: httpx.Response) -> None:
    assert reply.status_code < 500, reply.text
    document = reply.json()
    if reply.status_code != 200:
        assert list(document) == ["error"]


@fuzzed
@given(st.binary(max_size=300))
@example(b"[" * 1_000_000)
@example(b'{"instances":' * 200_000)
@example(b'{"inputs": [' + b"[" * 900 + b"]" * 900 + b"]}")
@example(b'{"inputs": ' + b"9" * 100_000 + b', "x": NaN}')
@example(b'{"inputs": [' + b"0," * 500_000 + b"0]}")
@example(b'{"signature_name": "embed", "inputs": [{"b64": "' + b"A" * 30_000_000 + b'"}]}')
def test_any_bytes_as_a_body(rest: RestApi, body: bytes) -> None:
    check(post(rest, body))


@fuzzed
@given(requests())
def test_any_json_as_a_body(rest: RestApi, body: Any) -> None:
    check(post(rest, json.dumps(body)))


@fuzzed
@given(
    damaged(
        [
            json.dumps({"instances": [{"image_a": {"b64": GOOD}, "image_b": "x"}]}).encode(),
            b'{"signature_name": "match", "inputs": {"embedding_a": [[1]], "embedding_b": [[3]]}}',
            b'{"signature_name": "examples", "instances": ["x", {"b64": "AAAA"}]}',
        ]
    )
)
def test_any_damaged_body(rest: RestApi, body: bytes) -> None:
    check(post(rest, body))


@fuzzed
@given(
    st.lists(
        st.one_of(
            damaged(FILES),
            headers(),
            st.binary(max_size=100),
            st.sampled_from(sorted(BAD.values())),
            st.sampled_from(FILES),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_bytes_as_images(rest: RestApi, images: list[bytes]) -> None:
    encoded_images = [{"b64": base64.b64encode(image).decode()} for image in images]
    check(post(rest, json.dumps({"signature_name": "embed", "instances": encoded_images})))


@fuzzed
@given(st.lists(damaged([b"\x0a\x10\x0a\x0e\x0a\x07image_a\x12\x03\x0a\x01x"]), max_size=3))
def test_any_bytes_as_examples(rest: RestApi, records: list[bytes]) -> None:
    instances = [{"b64": base64.b64encode(record).decode()} for record in records]
    check(post(rest, json.dumps({"signature_name": "examples", "instances": instances})))


@fuzzed
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"]),
    st.text(
        st.sampled_from("/:.%0123456789abcdefABCDEF?#&=_-~;'\"{}") | st.characters(codec="utf-8"),
        max_size=40,
    ),
)
def test_any_path(rest: RestApi, method: str, tail: str) -> None:
    # Past httpx' own idea of what a path is: sent as it stands.
    raw = bytes(byte for byte in b"/v1/models/" + tail.encode() if 32 < byte < 127)
    reply = rest.http.request(method, "/", extensions={"target": raw})
    assert reply.status_code < 500
    assert method == "HEAD" or "error" in reply.json() or reply.status_code == 200


shapes = st.lists(st.integers(-2, 2**40) | st.integers(0, 4), max_size=3)


@fuzzed
@given(
    st.sampled_from(SIGNATURES),
    st.lists(st.sampled_from(["image", "image_a", "image_b", "embedding_a", "embedding_b", "x"])),
    st.sampled_from(sorted(types_pb2.DataType.values())),
    shapes,
    st.binary(max_size=40),
    st.booleans(),
)
@example("match", ["embedding_a", "embedding_b"], types_pb2.DT_FLOAT, [2**40], b"\0" * 4, False)
@example("embed", ["image"], types_pb2.DT_STRING, [2**40], b"x", False)
@example("embed", ["image"], types_pb2.DT_STRING, [0, 2**40, 2**40], b"", False)
@example("embed", ["image"], types_pb2.DT_STRING, [1] * 100, b"x", False)
@example("match", ["embedding_a"], types_pb2.DT_FLOAT, [1] * 100, b"1234", True)
@example("embed", ["image"], types_pb2.DT_STRING, [0], b"", False)
@example("embed", ["image"], types_pb2.DT_STRING, [], b"x", False)
def test_any_tensor_over_grpc(
    grpc_api: GrpcApi,
    signature: str,
    names: list[str],
    dtype: int,
    shape: list[int],
    data: bytes,
    as_content: bool,
) -> None:
    message = predict_pb2.PredictRequest(model_spec=grpc_api.spec(signature=signature))
    for name in names:
        proto = message.inputs[name]
        proto.dtype = dtype
        for size in shape:
            proto.tensor_shape.dim.add().size = size
        if as_content:
            proto.tensor_content = data
        elif data:
            proto.string_val.append(data)
            proto.float_val.extend(struct.unpack(f"{len(data) // 4}f", data[: len(data) // 4 * 4]))
    try:
        reply = grpc_api.call(grpc_api.predictions.Predict, message)
    except Refused as refused:
        assert refused.status < 500, refused.message  # noqa: PT017
    else:
        assert reply.outputs


@fuzzed
@given(st.integers(0, 40), st.integers(0, 12), st.sampled_from(["float32", "float64", "int64"]))
def test_any_shape_of_embeddings(rest: RestApi, rows: int, columns: int, dtype: str) -> None:
    vectors = np.ones((rows, columns), dtype).tolist()
    body = {
        "signature_name": "match",
        "inputs": {"embedding_a": vectors, "embedding_b": vectors},
    }
    check(post(rest, json.dumps(body)))
