"""Examples in JSON, and the replies to classify and regress."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_serving.apis import classification_pb2, regression_pb2

from serving.errors import Code, ServingError
from serving.server.classify import read_examples, write_classes, write_values


def test_features_take_the_type_of_their_values() -> None:
    document = {
        "examples": [
            {"i": [1, True], "f": [1.5, float("nan")], "b": ["é", {"b64": "AP8="}], "one": -3},
            {"empty": []},
        ]
    }
    first, second = read_examples(document).example_list.examples
    features = first.features.feature
    assert list(features["i"].int64_list.value) == [1, 1]
    assert features["f"].float_list.value[0] == 1.5
    assert list(features["b"].bytes_list.value) == ["é".encode(), b"\0\xff"]
    assert list(features["one"].int64_list.value) == [-3]
    assert second.features.feature["empty"].WhichOneof("kind") is None


def test_a_context_is_kept_apart() -> None:
    read = read_examples({"context": {"c": 1}, "examples": [{"x": 2.0}]})
    assert read.WhichOneof("kind") == "example_list_with_context"
    context = read.example_list_with_context.context.features.feature
    assert list(context["c"].int64_list.value) == [1]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "key 'examples' is expected and was not found"),
        ({"examples": {}}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{}], "context": []}, "Example must be JSON object but got JSON Array"),
        ({"examples": [{"x": None}]}, "has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1]]}]}, "has element with unexpected JSON type: Array"),
        ({"examples": [{"x": {"y": 1}}]}, "has element with unexpected JSON type: Object"),
        ({"examples": [{"x": [1, 1.5]}]}, "expecting type: int64"),
        ({"examples": [{"x": ["a", 1]}]}, "expecting type: bytes"),
        ({"examples": [{"x": 2**63}]}, "Only int64 is supported"),
        ({"examples": [{"x": 1e39}]}, "to float without loss of precision"),
        ({"examples": [{"x": {"b64": "!"}}]}, "Unable to base64 decode"),
        ({"examples": [{"\ud800": 1}]}, "no UTF-8"),
    ],
)
def test_a_wrong_example_gets_tf_servings_message(document: Any, message: str) -> None:
    with pytest.raises(ServingError) as caught:
        read_examples(document)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert message in caught.value.message


def test_classes_are_pairs_of_label_and_score() -> None:
    result = classification_pb2.ClassificationResult()
    classes = result.classifications.add().classes
    classes.add(label="a", score=0.2)
    classes.add(label="b", score=float("nan"))
    assert write_classes(result) == b'{"results": [[["a", 0.2], ["b", NaN]]]}'


def test_values_stand_in_a_list() -> None:
    result = regression_pb2.RegressionResult()
    result.regressions.add(value=42)
    assert json.loads(write_values(result)) == {"results": [42.0]}


def test_an_empty_result_is_no_reply() -> None:
    with pytest.raises(ServingError, match="empty ClassificationResults"):
        write_classes(classification_pb2.ClassificationResult())
    with pytest.raises(ServingError, match="empty RegressionResults"):
        write_values(regression_pb2.RegressionResult())


@given(st.dictionaries(st.text(max_size=4), st.lists(st.integers(-(2**63), 2**63 - 1))))
def test_any_whole_numbers_are_kept(features: dict[str, list[int]]) -> None:
    example = read_examples({"examples": [features]}).example_list.examples[0]
    read = {k: list(f.int64_list.value) for k, f in example.features.feature.items()}
    assert read == features
