"""Paths as TF Serving reads them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import Code, ServingError
from serving.server.rest.protocol import MAX_VERSION, ModelPath, parse_model_path


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", b"/v1/models/m:predict", ModelPath("Predict", "m")),
        ("POST", b"/v1/models/m/versions/12:predict", ModelPath("Predict", "m", version=12)),
        ("POST", b"/v1/models/m/labels/stable:predict", ModelPath("Predict", "m", label="stable")),
        ("GET", b"/v1/models/m", ModelPath("GetModelStatus", "m")),
        ("GET", b"/v1/models/m/versions/0", ModelPath("GetModelStatus", "m", version=0)),
        ("GET", b"/v1/models/m/metadata", ModelPath("GetModelMetadata", "m")),
        (
            "GET",
            b"/v1/models/m/versions/007/metadata",
            ModelPath("GetModelMetadata", "m", version=7),
        ),
        (
            "GET",
            b"/v1/models/m/labels/a%20b/metadata",
            ModelPath("GetModelMetadata", "m", label="a b"),
        ),
        ("GET", b"/V1/Models/M", ModelPath("GetModelStatus", "M")),
        ("GET", b"/v1/models/metadata", ModelPath("GetModelStatus", "metadata")),
    ],
)
def test_what_tf_serving_serves_is_understood(
    method: str, path: bytes, expected: ModelPath
) -> None:
    assert parse_model_path(method, path) == expected


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", b"/v1/foo"),
        ("POST", b"/v1/foo"),
        ("POST", b"/v1/models"),
        ("GET", b"/v1/models/foo:predict"),
        ("POST", b"/v1/models/foo"),
        ("POST", b"/v1/models/foo/version/50:predict"),
        ("POST", b"/v1/models/foo/versions/HELLO:predict"),
        ("POST", b"/v1/models/foo:classify"),
        ("POST", b"/v1/models/foo:regress"),
        ("POST", "/v1/models/foo/versions/١:predict".encode()),
        ("POST", b"/v1/models/foo:PREDICT"),
        ("POST", b"/v1/models/foo:predict/"),
        ("DELETE", b"/v1/models/foo"),
        ("HEAD", b"/v1/models/foo"),
        ("GET", b"/v1/models/../../etc/passwd"),
        ("GET", b"/v1/models/foo/versions/1/labels/stable"),
    ],
)
def test_anything_else_below_v1_is_malformed(method: str, path: bytes) -> None:
    with pytest.raises(ServingError, match="Malformed request") as caught:
        parse_model_path(method, path)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("path", [b"/", b"", b"/v2/models/m", b"/favicon.ico", b"//v1/models/m"])
def test_nothing_is_found_outside_v1(path: bytes) -> None:
    with pytest.raises(ServingError) as caught:
        parse_model_path("GET", path)
    assert caught.value.code is Code.NOT_FOUND


def test_a_model_must_be_named() -> None:
    with pytest.raises(ServingError, match="Missing model name"):
        parse_model_path("GET", b"/v1/models")


def test_versions_have_64_bits() -> None:
    fits = parse_model_path("GET", b"/v1/models/m/versions/%d" % MAX_VERSION)
    assert fits.version == MAX_VERSION
    for digits in (str(MAX_VERSION + 1), "9" * 5000):
        with pytest.raises(ServingError, match="Failed to convert version"):
            parse_model_path("GET", f"/v1/models/m/versions/{digits}".encode())


def test_an_escaped_slash_is_part_of_the_name() -> None:
    path = parse_model_path("GET", b"/v1/models/..%2F..%2Fetc%00")
    assert path == ModelPath("GetModelStatus", "../../etc\0")


@given(st.sampled_from(["GET", "POST", "PUT"]), st.binary(max_size=60))
def test_any_path_is_understood_or_refused(method: str, tail: bytes) -> None:
    with contextlib.suppress(ServingError):
        assert parse_model_path(method, b"/v1/models/" + tail).name
