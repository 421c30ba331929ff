"""Classify, Regress and MultiInference: Examples in, classes or values out."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from serving.errors import Code, ServingError
from serving.inputs import DEFAULT_SIGNATURE
from serving.servable import ModelHost

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
