"""Replies of TF Serving's predict API."""

import base64
import json
from collections.abc import Mapping
from typing import Final

import numpy as np
import orjson

from serving.rest_arrays import Array
from serving.rest_inputs import Format
from serving.rest_json import Json, invalid

BYTES_SUFFIX: Final = "_bytes"
"""Outputs with such names are bytes rather than text."""


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
