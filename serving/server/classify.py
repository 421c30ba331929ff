"""Classify, Regress and MultiInference: Examples in, classes or values out."""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from serving.errors import Code, ServingError
from serving.server.loaded_version import DEFAULT_SIGNATURE
from serving.server.models import ModelHost
from serving.server.rest.json_arrays import Json, invalid, is_b64, quoted, string_bytes, type_name

Array = npt.NDArray[Any]

CLASSIFY: Final = "tensorflow/serving/classify"
REGRESS: Final = "tensorflow/serving/regress"
_KINDS: Final = {CLASSIFY: "classification", REGRESS: "regression"}
_INPUTS: Final = "inputs"
_CLASSES: Final = "classes"
_SCORES: Final = "scores"
_OUTPUTS: Final = "outputs"


async def classify(
    host: ModelHost,
    examples: input_pb2.Input,
    *,
    signature: str | None = None,
    version: int | None = None,
    label: str | None = None,
    deadline: float | None = None,
) -> tuple[classification_pb2.ClassificationResult, int]:
    """Classes and scores of each Example, and the version that gave them.

    Raises:
      ServingError: INVALID_ARGUMENT: no Examples, or the signature is not one for classification;
        FAILED_PRECONDITION: its inputs or outputs are not named as they should be; and as for
        `ModelHost.predict`.
    """
    definition = _definition(host, CLASSIFY, signature, version, label)
    if not 1 <= len(definition.outputs) <= 2:
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f"Expected one or two output Tensors, found {len(definition.outputs)}",
        )
    if not {_CLASSES, _SCORES} & set(definition.outputs):
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or '
            f'"{_SCORES}". Signature was: {definition}',
        )
    rows = _serialized(examples)
    prediction = await host.predict_async(
        {_INPUTS: rows}, signature=signature, version=version, label=label, deadline=deadline
    )
    return _classifications(prediction.outputs, len(rows)), prediction.version


async def regress(
    host: ModelHost,
    examples: input_pb2.Input,
    *,
    signature: str | None = None,
    version: int | None = None,
    label: str | None = None,
    deadline: float | None = None,
) -> tuple[regression_pb2.RegressionResult, int]:
    """A value for each Example, and the version that gave it.

    Raises:
      ServingError: as for `classify`.
    """
    definition = _definition(host, REGRESS, signature, version, label)
    if len(definition.outputs) != 1:
        raise ServingError(Code.INVALID_ARGUMENT, "Expected one output Tensor.")
    if _OUTPUTS not in definition.outputs:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"No regression outputs found in SignatureDef: {definition}",
        )
    rows = _serialized(examples)
    prediction = await host.predict_async(
        {_INPUTS: rows}, signature=signature, version=version, label=label, deadline=deadline
    )
    values = prediction.outputs[_OUTPUTS]
    if values.dtype != np.float32 or values.shape not in ((len(rows),), (len(rows), 1)):
        raise ServingError(
            Code.INVALID_ARGUMENT,
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] of DT_FLOAT "
            f"but got {list(values.shape)} of {values.dtype}",
        )
    result = regression_pb2.RegressionResult()
    for value in values.ravel().tolist():
        result.regressions.add(value=value)
    return result, prediction.version


def _definition(
    host: ModelHost, method: str, signature: str | None, version: int | None, label: str | None
) -> Any:
    name = signature or DEFAULT_SIGNATURE
    signatures = host.metadata(version=version, label=label).signatures.signature_def
    if name not in signatures:
        raise ServingError(Code.INVALID_ARGUMENT, f"No signature was found with the name: {name}")
    definition = signatures[name]
    kind = _KINDS[method]
    if definition.method_name != method:
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f"Expected {kind} signature method_name to be {method}. Was: {definition.method_name}",
        )
    if len(definition.inputs) != 1:
        raise ServingError(Code.INVALID_ARGUMENT, "Expected one input Tensor.")
    if _INPUTS not in definition.inputs:
        raise ServingError(
            Code.FAILED_PRECONDITION, f"No {kind} inputs found in SignatureDef: {definition}"
        )
    return definition


def _serialized(examples: input_pb2.Input) -> Array:
    """Examples as `bytes[N]`; a common context is merged into each of them."""
    # Serialized messages one after the other are the message merged from them.
    context = b""
    listed = examples.example_list.examples
    if examples.WhichOneof("kind") == "example_list_with_context":
        context = examples.example_list_with_context.context.SerializeToString()
        listed = examples.example_list_with_context.examples
    if not listed:
        raise ServingError(Code.INVALID_ARGUMENT, "Input is empty.")
    rows = np.empty(len(listed), dtype=object)
    rows[:] = [context + example.SerializeToString() for example in listed]
    return rows


def _classifications(
    outputs: Mapping[str, Array], rows: int
) -> classification_pb2.ClassificationResult:
    classes, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    given = [array for array in (classes, scores) if array is not None]
    if any(array.ndim != 2 or array.shape[0] != rows for array in given):
        raise ServingError(
            Code.INVALID_ARGUMENT,
            "Expected Tensor shape: [batch_size num_classes] but got "
            f"{[list(array.shape) for array in given]}",
        )
    if len({array.shape for array in given}) != 1:
        raise ServingError(
            Code.INVALID_ARGUMENT, "Tensors class and score should match in dim_size(1)."
        )
    if classes is not None and classes.dtype != object:
        raise ServingError(Code.INVALID_ARGUMENT, "Expected classes Tensor of DT_STRING.")
    if scores is not None and scores.dtype != np.float32:
        raise ServingError(Code.INVALID_ARGUMENT, "Expected scores Tensor of DT_FLOAT.")
    result = classification_pb2.ClassificationResult()
    for row in range(rows):
        found = result.classifications.add().classes
        for column in range(given[0].shape[1]):
            entry = found.add()
            if classes is not None:
                # Bytes that are no UTF-8 could not be sent: the field is a proto string.
                entry.label = classes[row, column].decode("utf-8", "replace")
            if scores is not None:
                entry.score = float(scores[row, column])
    return result


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
