"""JSON of TF Serving's predict API to arrays, and back.

Formats and messages follow TF Serving's json_tensor.cc. Two things differ on purpose: values quoted
in messages are cut short (TF Serving repeats a whole image to whoever got its format wrong), and
arrays may have at most 32 dimensions.
"""

import base64
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from tensorflow.core.framework import types_pb2

from serving.errors import Code, ServingError

Array = npt.NDArray[Any]
Json = Any
Format = Literal["row", "column"]
InputTypes = Mapping[str, int]
"""The inputs of a signature by name, with the number of their `DataType`."""

MAX_RANK: Final = 32
MAX_QUOTED: Final = 200
"""Longest value repeated in a message, characters."""
BYTES_SUFFIX: Final = "_bytes"

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


class PredictBody(NamedTuple):
    """A body read as JSON, of which the tensors wait for the signature to be known.

    Attributes:
      signature: '' where the body names none.
    """

    signature: str
    document: dict[str, Json]


def parse_body(body: bytes) -> PredictBody:
    """Reads the JSON of a predict, classify or regress request.

    NaN, Infinity and -Infinity are numbers, as for TF Serving.

    Raises:
      ServingError: INVALID_ARGUMENT; not JSON, nested deeper than 1,024, not an object, or a
        signature name that is no string.
    """
    document = _parse_json(body)
    if not isinstance(document, dict):
        raise _invalid(f"JSON Value: {quoted(document)} Is not object")
    signature = document.get("signature_name", "")
    if not isinstance(signature, str):
        raise _invalid(
            f"JSON Value: {quoted(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return PredictBody(signature, document)


def read_inputs(document: Mapping[str, Json], types: InputTypes) -> tuple[dict[str, Array], Format]:
    """The tensors of a predict request.

    Args:
      document: with `instances` (row format) or `inputs` (column format).
      types: inputs of the signature, one or more.

    Returns:
      Arrays by input name, strings as `bytes` in object arrays, and the format to answer in.

    Raises:
      ServingError: INVALID_ARGUMENT, with TF Serving's words; UNIMPLEMENTED: a type that JSON
        cannot carry.
    """
    if "instances" in document and "inputs" in document:
        raise _invalid(
            f"JSON Value: {quoted(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        return _read_rows(document, types), "row"
    if "inputs" in document:
        return _read_columns(document["inputs"], types), "column"
    raise _invalid("Missing 'inputs' or 'instances' key")


def write_outputs(outputs: Mapping[str, Array], form: Format) -> bytes:
    """The reply to a predict request.

    Floats are written with as few digits as tell them from their neighbours; NaN and infinities as
    TF Serving writes them, which is not strictly JSON. Strings are `{"b64": ...}` where the name of
    the output ends in `_bytes`.

    Raises:
      ServingError: INVALID_ARGUMENT; row format is asked for and the outputs have no common first
        dimension.
    """
    if form == "row":
        _check_rows(outputs)
    finite = all(np.isfinite(array).all() for array in outputs.values() if array.dtype.kind == "f")
    as_json = _orjson_value if finite else _json_value
    values = {name: as_json(name, outputs[name]) for name in sorted(outputs)}
    several = len(values) > 1
    reply: dict[str, Json]
    if form == "column":
        reply = {"outputs": values if several else next(iter(values.values()))}
    elif several:
        rows = zip(*values.values(), strict=True)
        reply = {"predictions": [dict(zip(values, row, strict=True)) for row in rows]}
    else:
        reply = {"predictions": next(iter(values.values()))}
    if finite:
        return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps(reply).encode()


def quoted(value: Json) -> str:
    """A value for a message: its JSON, cut short."""
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):
        text = "[[...]]"
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def _invalid(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message)


def _parse_json(body: bytes) -> Json:
    if not body:
        raise _invalid("JSON Parse error: The document is empty")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        message = f"JSON Parse error: {error.msg} at offset: {error.pos}"
        if not re.search(rb"NaN|Infinity", body):
            raise _invalid(message) from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _invalid(message) from None


def _is_b64(value: Json) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_object(value: Json) -> bool:
    return isinstance(value, dict) and not _is_b64(value)


def _read_rows(document: Mapping[str, Json], types: InputTypes) -> dict[str, Array]:
    instances = document["instances"]
    if not isinstance(instances, list):
        raise _invalid(f"JSON Value: {quoted(document)} Excepting 'instances' to be an list/array")
    if not instances:
        raise _invalid(f"JSON Value: {quoted(document)} No values in 'instances' array")
    if len(types) > 1 and not isinstance(instances[0], dict):
        raise _invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if not _is_object(instances[0]):
        if any(map(_is_object, instances)):
            at = next(at for at, item in enumerate(instances) if _is_object(item))
            raise _invalid(f"Expecting value/list but got object at item {at} of input list")
        name = min(types)
        return {name: _row_tensor(instances, types[name], key="")}
    for at, item in enumerate(instances):
        if not _is_object(item):
            raise _invalid(f"Expecting object but got list at item {at} of input list")
        _check_keys(item, types, at=at)
    return {
        name: _row_tensor([item[name] for item in instances], dtype, key=f" key: {name}")
        for name, dtype in types.items()
    }


def _check_keys(item: Mapping[str, Json], types: InputTypes, *, at: int) -> None:
    if item.keys() == types.keys():
        return
    for key in item:
        if key not in types:
            raise _invalid(
                f"Failed to process element: {at} key: {key[:MAX_QUOTED]} of 'instances' list. "
                "Error: INVALID_ARGUMENT: JSON object: does not have named input: "
                f"{key[:MAX_QUOTED]}"
            )
    raise _invalid(
        f"Failed to process element: {at} of 'instances' list. JSON object: {quoted(item)} "
        f"keys must be equal to: {','.join(sorted(types))}"
    )


def _row_tensor(items: list[Json], dtype: int, *, key: str) -> Array:
    array = _convert(items, dtype)
    if array is not None:
        return array
    first: list[int] = _shape(items[0])
    for at, item in enumerate(items):
        wrong = _what_is_wrong(item, dtype)
        if wrong is None and _shape(item) != first:
            size, expected = (int(np.prod(shape)) for shape in (_shape(item), first))
            wrong = (
                f"Expecting tensor size: {expected} but got: {size}"
                if size != expected
                else f"Expecting shape {_shape_text(first)} but got: {_shape_text(_shape(item))}"
            )
        if wrong is not None:
            raise _invalid(
                f"Failed to process element: {at}{key} of 'instances' list. "
                f"Error: INVALID_ARGUMENT: {wrong}"
            )
    raise _invalid("'instances' list cannot be converted to a tensor")


def _read_columns(inputs: Json, types: InputTypes) -> dict[str, Array]:
    if not _is_object(inputs):
        if len(types) > 1:
            raise _invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        inputs = {next(iter(types)): inputs}
    tensors = {}
    for name, dtype in types.items():
        if name not in inputs:
            raise _invalid(f"Missing named input: {name} in 'inputs' object.")
        array = _convert(inputs[name], dtype)
        if array is None:
            wrong = _what_is_wrong(inputs[name], dtype)
            raise _invalid(wrong or f"input {name} cannot be converted to a tensor")
        tensors[name] = array
    return tensors


def _convert(value: Json, dtype: int) -> Array | None:
    """A dense array, or None where `_what_is_wrong` should say why there is none."""
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
    array = np.empty(len(leaves), object)
    try:
        for at, leaf in enumerate(leaves):
            array[at] = leaf.encode() if isinstance(leaf, str) else _decode_b64(leaf)
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


def _decode_b64(value: Mapping[str, Json]) -> bytes:
    """Raises ValueError if it is not `{"b64": TEXT}`, or TEXT is not base64."""
    if not _is_b64(value):
        raise ValueError("not a b64 object")
    text = value["b64"]
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        # TF Serving does without padding and line breaks.
        compact = "".join(text.split())
        padding = "" if "=" in compact else "=" * (-len(compact) % 4)
        return base64.b64decode(compact + padding, validate=True)


def _shape(value: Json) -> list[int]:
    """The shape that the first values suggest."""
    shape: list[int] = []
    while isinstance(value, list) and len(shape) <= MAX_RANK:
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _shape_text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _what_is_wrong(value: Json, dtype: int) -> str | None:
    """Why a value is no dense tensor of `dtype`; None if it is one."""
    shape = _shape(value)
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
        return next(filter(None, (search(inner, level + 1) for inner in item)), None)

    return search(value, 0)


def _wrong_leaf(value: Json, dtype: int) -> str | None:
    if dtype == types_pb2.DT_STRING and isinstance(value, dict):
        if not _is_b64(value):
            return f"JSON Value: {quoted(value)} not formatted correctly for base64 data"
        return None if _strings([value]) is not None else "Unable to base64 decode"
    if _convert_leaves([value], dtype) is not None:
        return None
    name = types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()
    supported = (types_pb2.DT_STRING, types_pb2.DT_BOOL, *_FLOATS, *_INTEGERS)
    if dtype not in supported:
        raise ServingError(
            Code.UNIMPLEMENTED, f"Conversion of JSON Value: {quoted(value)} to type: {name}"
        )
    if dtype in _FLOATS and type(value) in (int, float):
        return f"Cannot convert JSON value: {quoted(value)} to {name} without loss of precision."
    kind = (
        "Null"
        if value is None
        else {bool: str(value), dict: "Object", str: "String"}.get(type(value), "Number")
    )
    return f"JSON Value: {quoted(value)} Type: {kind} is not of expected type: {name}"


def _check_rows(outputs: Mapping[str, Array]) -> None:
    sizes = {}
    for name, array in outputs.items():
        if array.ndim == 0:
            raise _invalid(f"Tensor name: {name} has no shape information ")
        sizes[name] = len(array)
    if len(set(sizes.values())) > 1:
        raise _invalid(f"Tensors have inconsistent batch sizes: {sizes}")


def _orjson_value(name: str, array: Array) -> Json:
    if array.dtype.kind in "OSU":
        return _json_value(name, array)
    # A scalar, if it has no dimension: orjson takes arrays of one or more.
    return np.ascontiguousarray(array) if array.ndim else array[()]


def _json_value(name: str, array: Array) -> Json:
    """Nested lists of what Python's json can write."""
    if array.dtype.kind == "f":
        # Through text, so that 0.2 in float32 stays 0.2.
        return array.astype(np.str_).astype(np.float64).tolist()
    if array.dtype.kind not in "OSU":
        return array.tolist()
    written = np.empty(array.shape, object)
    for at, value in np.ndenumerate(array):
        data = value if isinstance(value, bytes) else str(value).encode()
        if name.endswith(BYTES_SUFFIX):
            written[at] = {"b64": base64.b64encode(data).decode()}
        else:
            written[at] = data.decode("utf-8", "replace")
    return written.tolist()
