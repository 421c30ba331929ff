"""Converts JSON values to dense arrays, by the rules and with the messages of TF Serving."""

import base64
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tensorflow.core.framework import types_pb2

from serving.errors import Code, ServingError

Json = Any
Array = npt.NDArray[Any]

MAX_QUOTED: Final = 200
"""Longest value repeated in a message, characters."""
MAX_RANK: Final = 32
"""Most dimensions of an array; TF Serving allows 254, numpy 64."""

_INTEGERS: Final[Mapping[int, Any]] = {
    types_pb2.DT_INT8: np.int8,
    types_pb2.DT_INT16: np.int16,
    types_pb2.DT_INT32: np.int32,
    types_pb2.DT_INT64: np.int64,
    types_pb2.DT_UINT8: np.uint8,
    types_pb2.DT_UINT32: np.uint32,
    types_pb2.DT_UINT64: np.uint64,
}
_FLOATS: Final[Mapping[int, Any]] = {
    types_pb2.DT_FLOAT: np.float32,
    types_pb2.DT_DOUBLE: np.float64,
}

_SUPPORTED: Final = {types_pb2.DT_STRING, types_pb2.DT_BOOL, *_FLOATS, *_INTEGERS}


def quoted(value: Json) -> str:
    """A value for a message: its JSON, cut short.

    TF Serving repeats a whole image to whoever got its format wrong.
    """
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):
        text = "[[...]]"
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def is_b64(value: Json) -> bool:
    """Whether a value is `{"b64": TEXT}`: bytes, where a string is expected."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def is_object(value: Json) -> bool:
    """Whether a value holds named things rather than bytes."""
    return isinstance(value, dict) and not is_b64(value)


def convert(value: Json, dtype: int) -> Array | None:
    """A dense array, strings as `bytes`; or None, and `what_is_wrong` says why.

    Args:
      value: numbers, strings, truth values or `{"b64": ...}`, or nested lists of them.
      dtype: number of a `DataType`.
    """
    shape: list[int] = []
    leaves: list[Json] = [value]
    # Level by level, so that the loops over values run inside the interpreter.
    while leaves and set(map(type, leaves)) == {list}:
        lengths = set(map(len, leaves))
        if len(lengths) > 1 or len(shape) == MAX_RANK:
            return None
        shape.append(lengths.pop())
        leaves = list(itertools.chain.from_iterable(leaves))
    array = _convert_leaves(leaves, dtype)
    return None if array is None else array.reshape(shape)


def _convert_leaves(leaves: list[Json], dtype: int) -> Array | None:
    kinds = set(map(type, leaves))
    if dtype == types_pb2.DT_STRING:
        return _strings(leaves) if kinds <= {str, dict} else None
    if dtype in _FLOATS and kinds <= {int, float}:
        return _floats(leaves, _FLOATS[dtype], whole=int in kinds)
    if dtype in _INTEGERS and kinds <= {int}:
        return _integers(leaves, _INTEGERS[dtype])
    if dtype == types_pb2.DT_BOOL and kinds <= {bool}:
        return np.array(leaves, np.bool_)
    return None


def _strings(leaves: list[Json]) -> Array | None:
    if not all(isinstance(leaf, str) or is_b64(leaf) for leaf in leaves):
        return None
    array = np.empty(len(leaves), object)
    try:
        for at, leaf in enumerate(leaves):
            array[at] = leaf.encode() if isinstance(leaf, str) else _decode_b64(leaf["b64"])
    except ValueError:
        return None
    return array


def _floats(leaves: list[float], dtype: Any, *, whole: bool) -> Array | None:
    """None if a number is out of range, or a whole number would be rounded."""
    about = np.finfo(dtype)
    try:
        values = np.array(leaves, np.float64)
    except OverflowError:
        return None
    if (np.isfinite(values) & (np.abs(values) > float(about.max))).any():
        return None
    exact = 2 ** (about.nmant + 1) - 1
    # What does not fit 64 bits is no whole number to TF Serving but a decimal, and may be rounded.
    if whole and any(type(leaf) is int and exact < abs(leaf) < 2**64 for leaf in leaves):
        return None
    return values.astype(dtype)


def _integers(leaves: list[int], dtype: Any) -> Array | None:
    limits = np.iinfo(dtype)
    if leaves and not (limits.min <= min(leaves) and max(leaves) <= limits.max):
        return None
    return np.array(leaves, dtype)


def _decode_b64(text: str) -> bytes:
    """Raises ValueError if it is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        # TF Serving does without padding and line breaks.
        compact = "".join(text.split())
        padding = "" if "=" in compact else "=" * (-len(compact) % 4)
        return base64.b64decode(compact + padding, validate=True)


def apparent_shape(value: Json) -> list[int]:
    """The shape that the first values suggest."""
    shape: list[int] = []
    while isinstance(value, list) and len(shape) <= MAX_RANK:
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def shape_text(shape: Sequence[int]) -> str:
    """A shape as in TF Serving's messages."""
    return f"[{','.join(map(str, shape))}]"


def what_is_wrong(value: Json, dtype: int) -> str | None:
    """Why a value is no dense tensor of `dtype`; None if it is one.

    Raises:
      ServingError: UNIMPLEMENTED: a type that JSON cannot carry.
    """
    if dtype not in _SUPPORTED:
        raise ServingError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {quoted(value)} to type: {_dtype_name(dtype)}",
        )
    shape = apparent_shape(value)
    if len(shape) > MAX_RANK:
        return f"JSON Value: {quoted(value)} has more than {MAX_RANK} dimensions"

    def search(item: Json, level: int) -> str | None:
        if not isinstance(item, list):
            if level != len(shape):
                return (
                    f"JSON Value: {quoted(item)} found at incorrect level: {level + 1} "
                    f"in the JSON DOM. Expected at level: {len(shape)}"
                )
            return _wrong_leaf(item, dtype)
        if level >= len(shape):
            return f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        if len(item) != shape[level]:
            return (
                f"Encountered list at unexpected size: {len(item)} at level: {level} "
                f"expected size: {shape[level]}"
            )
        at = first_misfit(item, dtype, shape[level + 1 :])
        return None if at is None else search(item[at], level + 1)

    return search(value, 0)


def first_misfit(items: list[Json], dtype: int, shape: Sequence[int]) -> int | None:
    """Place of the first item that is no dense tensor of that type and shape; None if all are.

    By halves, as looking at each of a million values would take a client's mistake for minutes.
    """

    def fit(part: list[Json]) -> bool:
        array = convert(part, dtype)
        return array is not None and list(array.shape[1:]) == list(shape)

    if not items or fit(items):
        return None
    low, high = 0, len(items)  # what is before `low` fits, something before `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        if fit(items[low:middle]):
            low = middle
        else:
            high = middle
    return low


def type_name(value: Json) -> str:
    """The type of a JSON value as TF Serving calls it."""
    if value is None:
        return "Null"
    names = {bool: str(value), dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def _wrong_leaf(value: Json, dtype: int) -> str | None:
    if dtype == types_pb2.DT_STRING and isinstance(value, dict):
        if not is_b64(value):
            return f"JSON Value: {quoted(value)} not formatted correctly for base64 data"
        return None if _strings([value]) is not None else "Unable to base64 decode"
    if _convert_leaves([value], dtype) is not None:
        return None
    name = _dtype_name(dtype)
    if dtype in _FLOATS and type(value) in (int, float):
        return f"Cannot convert JSON value: {quoted(value)} to {name} without loss of precision."
    return f"JSON Value: {quoted(value)} Type: {type_name(value)} is not of expected type: {name}"


def _dtype_name(dtype: int) -> str:
    return str(types_pb2.DataType.Name(dtype)).removeprefix("DT_").lower()
