"""Predict requests and replies in JSON, in TF Serving's row or column format."""

import base64
import codecs
import contextlib
import gc
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

import numpy as np
import orjson

from serving.errors import invalid
from serving.server.rest.json_arrays import (
    MAX_QUOTED,
    Array,
    Json,
    apparent_shape,
    convert,
    first_misfit,
    is_object,
    quoted,
    shape_text,
    what_is_wrong,
)

Format = Literal["row", "column"]
InputTypes = Mapping[str, int]
"""The inputs of a signature by name, with the number of their `DataType`."""

BYTES_SUFFIX: Final = "_bytes"
"""Outputs with such names are bytes rather than text."""
MANY_VALUES: Final = 10_000
"""From so many on, the garbage collector is worth stopping."""


def parse_body(body: bytes, *, max_values: int = 2_000_000) -> tuple[str, dict[str, Json]]:
    """The JSON of a predict request: the signature's name, '' where it names none, and all of it.

    NaN, Infinity and -Infinity are numbers, as for TF Serving.

    Args:
      body: UTF-8, with or without a byte order mark.
      max_values: most values in all its lists and objects, counted a little generously. Three
        bytes can make a Python object of a hundred, so the size of a body is no limit enough.

    Raises:
      ServingError: INVALID_ARGUMENT; not JSON, nested deeper than 1,024, too many values, not an
        object, or a signature name that is no string.
    """
    values = sum(map(body.count, (b",", b"[", b"{")))
    if values > max_values:
        raise invalid(f"Request has more than {max_values} JSON values: send it in parts")
    with _no_collection() if values > MANY_VALUES else contextlib.nullcontext():
        document = _parse_json(body)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {quoted(document)} Is not object")
    signature = document.get("signature_name", "")
    if not isinstance(signature, str):
        raise invalid(
            f"JSON Value: {quoted(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return signature, document


def _parse_json(body: bytes) -> Json:
    body = body.removeprefix(codecs.BOM_UTF8)
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        message = f"JSON Parse error: {error.msg} at offset: {error.pos}"
        if not re.search(rb"NaN|Infinity", body):
            raise invalid(message) from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise invalid(message) from None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector from looking through the heap over and over.

    JSON has no cycles to find, and a million lists make it look for seconds.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
        raise invalid(
            f"JSON Value: {quoted(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        return _read_rows(document, types), "row"
    if "inputs" in document:
        return _read_columns(document["inputs"], types), "column"
    raise invalid("Missing 'inputs' or 'instances' key")


def _read_rows(document: Mapping[str, Json], types: InputTypes) -> dict[str, Array]:
    instances = document["instances"]
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {quoted(document)} Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid(f"JSON Value: {quoted(document)} No values in 'instances' array")
    if len(types) > 1 and not isinstance(instances[0], dict):
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if not is_object(instances[0]):
        if any(map(is_object, instances)):
            at = next(at for at, item in enumerate(instances) if is_object(item))
            raise invalid(f"Expecting value/list but got object at item {at} of input list")
        name = min(types)
        return {name: _row_tensor(instances, types[name], key="")}
    for at, item in enumerate(instances):
        if not is_object(item):
            raise invalid(f"Expecting object but got list at item {at} of input list")
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
            raise invalid(
                f"Failed to process element: {at} key: {key[:MAX_QUOTED]} of 'instances' list. "
                "Error: INVALID_ARGUMENT: JSON object: does not have named input: "
                f"{key[:MAX_QUOTED]}"
            )
    raise invalid(
        f"Failed to process element: {at} of 'instances' list. JSON object: {quoted(item)} "
        f"keys must be equal to: {','.join(sorted(types))}"
    )


def _row_tensor(items: list[Json], dtype: int, *, key: str) -> Array:
    array = convert(items, dtype)
    if array is not None:
        return array
    first = apparent_shape(items[0])
    at = first_misfit(items, dtype, first)
    wrong = ""
    if at is not None:
        wrong = what_is_wrong(items[at], dtype) or _difference(first, apparent_shape(items[at]))
    if not wrong:
        raise invalid("'instances' list cannot be converted to a tensor")
    raise invalid(
        f"Failed to process element: {at}{key} of 'instances' list. "
        f"Error: INVALID_ARGUMENT: {wrong}"
    )


def _difference(first: Sequence[int], other: Sequence[int]) -> str:
    """Why two instances cannot be rows of one tensor; '' if they can."""
    if first == other:
        return ""
    expected, size = math.prod(first), math.prod(other)
    if size != expected:
        return f"Expecting tensor size: {expected} but got: {size}"
    return f"Expecting shape {shape_text(first)} but got: {shape_text(other)}"


def _read_columns(inputs: Json, types: InputTypes) -> dict[str, Array]:
    if not is_object(inputs):
        if len(types) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        inputs = {next(iter(types)): inputs}
    tensors = {}
    # A signature's inputs come in the order of a protobuf map, which differs between processes.
    for name, dtype in sorted(types.items()):
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        array = convert(inputs[name], dtype)
        if array is None:
            wrong = what_is_wrong(inputs[name], dtype)
            raise invalid(wrong or f"input {name} cannot be converted to a tensor")
        tensors[name] = array
    return tensors


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


def _check_rows(outputs: Mapping[str, Array]) -> None:
    sizes = {}
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        sizes[name] = len(array)
    if len(set(sizes.values())) > 1:
        raise invalid(f"Tensors have inconsistent batch sizes: {sizes}")


def _orjson_value(name: str, array: Array) -> Json:
    if array.dtype.kind in "OSU":
        return _json_value(name, array)
    # A scalar, if it has no dimension: orjson takes arrays of one or more.
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return native if array.ndim else native[0]


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
