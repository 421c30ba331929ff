"""From the model's outputs to JSON."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import Code, ServingError
from serving.server.rest.predict_json import write_outputs


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
