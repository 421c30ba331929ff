"""Predict requests and replies in JSON."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework import types_pb2

from serving.errors import Code, ServingError
from serving.server.rest.json_arrays import MAX_QUOTED, convert, what_is_wrong
from serving.server.rest.predict_json import parse_body, read_inputs, write_outputs

FLOAT, STRING, INT32 = types_pb2.DT_FLOAT, types_pb2.DT_STRING, types_pb2.DT_INT32
X = {"x": FLOAT}
PAIR = {"a": STRING, "b": STRING}


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def error_of(document: Any, types: dict[str, int]) -> str:
    with pytest.raises(ServingError) as caught:
        read_inputs(document, types)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_a_plain_list_is_the_only_input(key: str) -> None:
    tensors, form = read_inputs({key: [[1, 2.5], [3, 4]]}, X)
    assert form == {"instances": "row", "inputs": "column"}[key]
    np.testing.assert_array_equal(tensors["x"], np.array([[1, 2.5], [3, 4]], np.float32))
    assert tensors["x"].dtype == np.float32


def test_rows_and_columns_give_the_same_tensors() -> None:
    rows = {"instances": [{"a": b64(b"1"), "b": "é"}, {"b": b64(b"\0\xff\0"), "a": ""}]}
    columns = {"inputs": {"a": [b64(b"1"), ""], "b": ["é", b64(b"\0\xff\0")], "unused": 3}}
    by_row, _ = read_inputs(rows, PAIR)
    by_column, _ = read_inputs(columns, PAIR)
    for tensors in (by_row, by_column):
        assert tensors["a"].tolist() == [b"1", b""]
        assert tensors["b"].tolist() == ["é".encode(), b"\0\xff\0"]


def test_a_single_named_input_may_be_named_or_not() -> None:
    for document in (
        {"instances": [{"x": 1.0}, {"x": 2.0}]},
        {"instances": [1.0, 2.0]},
        {"inputs": {"x": [1.0, 2.0]}},
        {"inputs": [1.0, 2.0]},
    ):
        assert read_inputs(document, X)[0]["x"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"inputs": [NaN, Infinity, -Infinity]}', [np.nan, np.inf, -np.inf]),
        (b'{"inputs": [1e-400, -0.0, 16777215]}', [0.0, -0.0, 16777215.0]),
        (b'{"inputs": [100000000000000000000]}', [1e20]),
    ],
)
def test_numbers_beyond_the_ordinary_are_numbers(text: bytes, expected: list[float]) -> None:
    tensors, _ = read_inputs(parse_body(text)[1], X)
    np.testing.assert_array_equal(tensors["x"], np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("document", "types", "message"),
    [
        ({}, X, "Missing 'inputs' or 'instances' key"),
        ({"inputs": [1], "instances": [1]}, X, "only one of"),
        ({"instances": 1}, X, "Excepting 'instances' to be an list/array"),
        ({"instances": []}, X, "No values in 'instances' array"),
        ({"instances": [1]}, PAIR, "expecting list of objects as multiple input tensors"),
        ({"inputs": ["a"]}, PAIR, "inputs is a plain value/list"),
        ({"inputs": {"a": ["1"]}}, PAIR, "Missing named input: b in 'inputs' object."),
        ({"instances": [{"a": ""}]}, PAIR, "keys must be equal to: a,b"),
        ({"instances": [{"a": "", "b": "", "c": 1}]}, PAIR, "does not have named input: c"),
        ({"instances": [{"x": 1}, 2]}, X, "Expecting object but got list at item 1"),
        ({"instances": [1, {"x": 1}]}, X, "Expecting value/list but got object at item 1"),
        ({"instances": [[1, 2], [3]]}, X, "Expecting tensor size: 2 but got: 1"),
        ({"instances": [[[1, 2]], [[3], [4]]]}, X, "Expecting shape [1,2] but got: [2,1]"),
        ({"instances": [1, "a"]}, X, "Failed to process element: 1 of 'instances' list. Error: "),
        ({"inputs": [[1], 2]}, X, "found at incorrect level: 2 in the JSON DOM"),
        ({"inputs": [1, [2]]}, X, "Encountered list at unexpected level: 1 expected < 1"),
        ({"inputs": [[1, 2], [3]]}, X, "Encountered list at unexpected size: 1 at level: 1"),
        ({"inputs": ["1"]}, X, 'JSON Value: "1" Type: String is not of expected type: float'),
        ({"inputs": [True]}, X, "JSON Value: true Type: True is not of expected type: float"),
        ({"inputs": [None]}, X, "Type: Null"),
        ({"inputs": [b64(b"1")]}, X, "Type: Object"),
        ({"inputs": [16777217]}, X, "to float without loss of precision"),
        ({"inputs": [1e39]}, X, "to float without loss of precision"),
        ({"inputs": [2**31]}, {"n": INT32}, "is not of expected type: int32"),
        ({"inputs": [1.0]}, {"n": INT32}, "is not of expected type: int32"),
        ({"inputs": [3]}, {"s": STRING}, "Type: Number is not of expected type: string"),
        ({"inputs": [{"b64": "!"}]}, {"s": STRING}, "Unable to base64 decode"),
        (
            {"inputs": [{"b64": "YQ==", "x": 1}]},
            {"s": STRING},
            "not formatted correctly for base64",
        ),
        ({"inputs": [{"b64": 3}]}, {"s": STRING}, "not formatted correctly for base64"),
    ],
)
def test_a_wrong_document_gets_tf_servings_message(
    document: Any, types: dict[str, int], message: str
) -> None:
    assert message in error_of(document, types)


def test_unpadded_base64_and_line_breaks_are_read() -> None:
    tensors, _ = read_inputs({"inputs": [{"b64": "YQ"}, {"b64": "YW\nJj"}]}, {"s": STRING})
    assert tensors["s"].tolist() == [b"a", b"abc"]


def test_types_that_json_cannot_carry_are_unimplemented() -> None:
    with pytest.raises(ServingError, match="to type: complex64") as caught:
        read_inputs({"inputs": [1]}, {"c": types_pb2.DT_COMPLEX64})
    assert caught.value.code is Code.UNIMPLEMENTED


def test_a_message_does_not_repeat_a_whole_image() -> None:
    image = "A" * 100_000
    message = error_of({"instances": [1], "inputs": {"b64": image}}, X)
    assert len(message) < 2 * MAX_QUOTED


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"instances = [1, 2]", "JSON Parse error: "),
        (b'{"instances": [1', "JSON Parse error: "),
        (b"\xff\xfe", "JSON Parse error: "),
        (b'{"a": "\\ud800"}', "JSON Parse error: "),
        (b"[" * 100_000, "JSON Parse error: "),
        (b"[" * 100_000 + b"NaN", "JSON Parse error: "),
        (b'{"a": NaN, }', "JSON Parse error: "),
        (b'{"a": NaN, "b": ' + b"9" * 5000 + b"}", "JSON Parse error: "),
        (b"[1]", "JSON Value: [1] Is not object"),
        (b"NaN", "JSON Value: NaN Is not object"),
        (b'{"signature_name": 100}', "'signature_name' key must be a string value."),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ServingError) as caught:
        parse_body(body)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert message in caught.value.message


def test_a_lone_surrogate_that_json_lets_through_is_refused_later() -> None:
    document = parse_body(b'{"inputs": ["\\ud800"], "unused": NaN}')[1]
    assert "not of expected type: string" in error_of(document, {"s": STRING})


def test_a_nest_of_lists_is_refused_however_deep() -> None:
    for depth in (40, 1000):
        nest: Any = 1.0
        for _ in range(depth):
            nest = [nest]
        assert "more than 32 dimensions" in error_of({"inputs": nest}, X)
        assert error_of({"instances": [nest]}, X)


@pytest.mark.parametrize("key", ["instances", "inputs"])
@pytest.mark.parametrize(("wide", "at"), [(1, 299_999), (3, 7), (100, 2999)])
def test_one_wrong_value_among_very_many_is_found(key: str, wide: int, at: int) -> None:
    values: list[Any] = [[1.5] * wide for _ in range(300_000 // wide)]
    values[at] = [*values[at][1:], "wrong"]
    assert 'JSON Value: "wrong" Type: String' in error_of({key: values}, X)
    values[at] = [1.5] * (wide + 1)
    assert f"{wide + 1}" in error_of({key: values}, X)


def test_a_body_of_too_many_values_is_refused_before_it_is_read() -> None:
    body = b'{"inputs": [' + b"[]," * 2_000_000 + b"[]]}"
    with pytest.raises(ServingError, match="more than 2000000 JSON values"):
        parse_body(body)
    assert len(parse_body(body[:16] + b"1,1,1]]}", max_values=8)[1]["inputs"]) == 2
    with pytest.raises(ServingError, match="more than 3 JSON values"):
        parse_body(b'{"inputs": [1,2,3]}', max_values=3)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.dictionaries(st.sampled_from(["b64", "x"]), st.text("AB=", max_size=5), max_size=2),
)
CARRIED = {
    types_pb2.DT_STRING,
    types_pb2.DT_BOOL,
    types_pb2.DT_FLOAT,
    types_pb2.DT_DOUBLE,
    types_pb2.DT_INT8,
    types_pb2.DT_INT16,
    types_pb2.DT_INT32,
    types_pb2.DT_INT64,
    types_pb2.DT_UINT8,
    types_pb2.DT_UINT32,
    types_pb2.DT_UINT64,
}
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=8)


@given(VALUES, st.sampled_from(sorted(types_pb2.DataType.values())[1:20]))
def test_a_value_is_an_array_or_there_is_a_reason(value: Any, dtype: int) -> None:
    array = convert(value, dtype)
    if dtype in CARRIED:
        assert (array is None) == (what_is_wrong(value, dtype) is not None)
    else:
        assert array is None
        with pytest.raises(ServingError) as caught:
            what_is_wrong(value, dtype)
        assert caught.value.code is Code.UNIMPLEMENTED


@given(st.lists(st.floats(width=32), max_size=6))
def test_any_float32_survives_the_way_through_json(values: list[float]) -> None:
    document = parse_body(json.dumps({"inputs": values}).encode())[1]
    np.testing.assert_array_equal(read_inputs(document, X)[0]["x"], np.array(values, np.float32))


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=4))
def test_any_bytes_survive_the_way_through_json(values: list[bytes]) -> None:
    body = json.dumps({"instances": [b64(value) for value in values]}).encode()
    tensors, _ = read_inputs(parse_body(body)[1], {"s": STRING})
    assert tensors["s"].tolist() == values


def written(outputs: dict[str, np.ndarray], form: Any) -> Any:
    return json.loads(write_outputs(outputs, form))


def test_one_output_stands_for_itself() -> None:
    outputs = {"y": np.array([[1, 2], [3, 4]], np.float32)}
    assert written(outputs, "row") == {"predictions": [[1, 2], [3, 4]]}
    assert written(outputs, "column") == {"outputs": [[1, 2], [3, 4]]}


def test_several_outputs_are_named() -> None:
    outputs = {"y": np.array([1, 2], np.int64), "x": np.array([[0.5], [1.5]], np.float32)}
    assert written(outputs, "row") == {"predictions": [{"x": [0.5], "y": 1}, {"x": [1.5], "y": 2}]}
    assert written(outputs, "column") == {"outputs": {"x": [[0.5], [1.5]], "y": [1, 2]}}


def test_strings_are_text_unless_their_name_says_bytes() -> None:
    words = np.array([b"ab", b"\xff"], object)
    assert written({"word": words, "word_bytes": words}, "column") == {
        "outputs": {"word": ["ab", "\ufffd"], "word_bytes": [{"b64": "YWI="}, {"b64": "/w=="}]}
    }


def test_floats_have_no_digits_of_another_precision() -> None:
    tenths = np.array([0.1, 0.2, 1e-8], np.float32)
    for outputs in ({"y": tenths}, {"y": np.append(tenths, np.float32(np.inf))}):
        text = write_outputs(outputs, "row").decode()
        assert "0.2," in text
        assert "0.10000" not in text


def test_nan_and_infinity_are_written_as_tf_serving_does() -> None:
    text = write_outputs({"y": np.array([np.nan, np.inf, -np.inf], np.float32)}, "row")
    assert b"[NaN, Infinity, -Infinity]" in text


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint64, np.bool_])
def test_every_type_of_number_is_written(dtype: Any) -> None:
    values = np.array([0, 1], dtype)
    assert written({"y": values}, "row") == {"predictions": [0, 1]}


def test_a_scalar_is_a_column_but_no_row() -> None:
    outputs = {"y": np.array(0.5, np.float32)}
    assert written(outputs, "column") == {"outputs": 0.5}
    with pytest.raises(ServingError, match="no shape information") as caught:
        write_outputs(outputs, "row")
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_rows_need_a_common_number_of_them() -> None:
    outputs = {"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)}
    assert written(outputs, "column") == {"outputs": {"x": [0, 0], "y": [0, 0, 0]}}
    with pytest.raises(ServingError, match="inconsistent batch size"):
        write_outputs(outputs, "row")


def test_slices_and_foreign_byte_orders_are_written() -> None:
    outputs = {"x": np.arange(6, dtype=">f4").reshape(3, 2)[:, ::-1]}
    assert written(outputs, "row") == {"predictions": [[1, 0], [3, 2], [5, 4]]}


@given(st.lists(st.floats(width=32), min_size=1, max_size=5))
def test_any_float32_is_read_back(values: list[float]) -> None:
    array = np.array(values, np.float32)
    read = np.array(written({"y": array}, "column")["outputs"], np.float32)
    np.testing.assert_array_equal(read, array)
