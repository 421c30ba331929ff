"""Classify and regress requests: Examples written as JSON objects, and TF Serving's replies."""

import json
import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from serving.rest_arrays import is_b64, string_bytes, type_name
from serving.rest_json import Json, invalid, quoted

MAX_FLOAT32: Final = float(np.finfo(np.float32).max)


def read_examples(document: Mapping[str, Json]) -> input_pb2.Input:
    """The Examples of a request, and their common context if there is one.

    A feature is a value or a list of them: text or `{"b64": ...}` becomes bytes, numbers with a
    point become floats, whole numbers and truth values become int64.

    Raises:
      ServingError: INVALID_ARGUMENT, with TF Serving's words.
    """
    read = input_pb2.Input()
    target = read.example_list.examples
    if "context" in document:
        read.example_list_with_context.context.CopyFrom(_example(document["context"]))
        target = read.example_list_with_context.examples
    problem = None
    if "examples" not in document:
        problem = "When method is classify, key 'examples' is expected and was not found"
    elif not isinstance(document["examples"], list):
        problem = "Expecting 'examples' value to be an list/array"
    elif not document["examples"]:
        problem = "'examples' value is an empty array"
    if problem:
        raise invalid(f"JSON Value: {quoted(document)} {problem}")
    target.extend(map(_example, document["examples"]))
    return read


def write_classes(result: classification_pb2.ClassificationResult) -> bytes:
    """`{"results": [[[LABEL, SCORE], ...], ...]}`, a list for each Example."""
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    rows = [
        [[found.label, _shortest(found.score)] for found in row.classes]
        for row in result.classifications
    ]
    return json.dumps({"results": rows}).encode()


def write_values(result: regression_pb2.RegressionResult) -> bytes:
    """`{"results": [VALUE, ...]}`, a value for each Example."""
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    values = [_shortest(found.value) for found in result.regressions]
    return json.dumps({"results": values}).encode()


def _shortest(value: float) -> float:
    """A float32 with no digits of another precision."""
    return float(str(np.float32(value)))


def _example(value: Json) -> example_pb2.Example:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_name(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        try:
            feature = example.features.feature[name]
        except ValueError:
            raise invalid(f"Feature: {quoted(name)} has a name that is no UTF-8") from None
        for item in content if isinstance(content, list) else [content]:
            _add(item, feature, name=quoted(name))
    return example


def _add(value: Json, feature: feature_pb2.Feature, *, name: str) -> None:
    kind, converted = _feature_value(value, name=name)
    if feature.WhichOneof("kind") not in (None, kind):
        expected = feature.WhichOneof("kind").removesuffix("_list")
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {expected}")
    getattr(feature, kind).value.append(converted)


def _feature_value(value: Json, *, name: str) -> tuple[str, bytes | int | float]:
    """The kind of list a value belongs to, and what to put there."""
    if isinstance(value, (str, dict)) and (isinstance(value, str) or is_b64(value)):
        data = string_bytes(value)
        if data is None:
            raise invalid("Unable to base64 decode")
        return "bytes_list", data
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return "int64_list", int(value)
    if isinstance(value, float):
        if math.isfinite(value) and abs(value) > MAX_FLOAT32:
            raise invalid(
                f"Cannot convert JSON value: {quoted(value)} to float without loss of precision."
            )
        return "float_list", value
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")
