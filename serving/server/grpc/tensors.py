"""Converts `TensorProto` to numpy and back, without trusting the sender."""

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.errors import Code, ServingError, invalid

Array = npt.NDArray[Any]

# A proto may give fewer values than its shape has and mean the last one repeated: a few bytes
# must not become gigabytes.
_MAX_REPEATED: Final = 1 << 20


class _Kind(NamedTuple):
    dtype: np.dtype[Any]
    field: str


_KINDS: Final = {
    types_pb2.DT_FLOAT: _Kind(np.dtype("<f4"), "float_val"),
    types_pb2.DT_DOUBLE: _Kind(np.dtype("<f8"), "double_val"),
    types_pb2.DT_INT32: _Kind(np.dtype("<i4"), "int_val"),
    types_pb2.DT_INT16: _Kind(np.dtype("<i2"), "int_val"),
    types_pb2.DT_INT8: _Kind(np.dtype("i1"), "int_val"),
    types_pb2.DT_UINT8: _Kind(np.dtype("u1"), "int_val"),
    types_pb2.DT_UINT16: _Kind(np.dtype("<u2"), "int_val"),
    types_pb2.DT_UINT32: _Kind(np.dtype("<u4"), "uint32_val"),
    types_pb2.DT_INT64: _Kind(np.dtype("<i8"), "int64_val"),
    types_pb2.DT_UINT64: _Kind(np.dtype("<u8"), "uint64_val"),
    types_pb2.DT_BOOL: _Kind(np.dtype("?"), "bool_val"),
    types_pb2.DT_STRING: _Kind(np.dtype(object), "string_val"),
}
_TYPES: Final = {kind.dtype: number for number, kind in _KINDS.items()}


def array_from_proto(proto: tensor_pb2.TensorProto, *, name: str) -> Array:
    """The tensor as an array; strings as `bytes` in an object array.

    Args:
      proto: with values in its typed field or, numbers only, in `tensor_content`.
      name: of the input, for the message.

    Raises:
      ServingError: INVALID_ARGUMENT: values and shape or type do not fit together.
    """
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    kind = _KINDS.get(proto.dtype)
    if kind is None or proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise _parsing_error(name)
    size = math.prod(shape)
    if proto.tensor_content:
        if kind.dtype == object or len(proto.tensor_content) != size * kind.dtype.itemsize:
            raise _parsing_error(name)
        return _shaped(np.frombuffer(proto.tensor_content, kind.dtype), shape, name)
    values = getattr(proto, kind.field)
    if len(values) > size or (len(values) < size and (not values or size > _MAX_REPEATED)):
        raise _parsing_error(name)
    if kind.dtype == object:
        array = np.empty(len(values), dtype=object)
        array[:] = values
    else:
        try:
            array = np.array(values, dtype=kind.dtype)
        except OverflowError:
            raise _parsing_error(name) from None
    if len(values) < size:
        array = np.concatenate([array, np.repeat(array[-1:], size - len(values))])
    return _shaped(array, shape, name)


def array_to_proto(array: Array, proto: tensor_pb2.TensorProto) -> None:
    """Fills `proto` with the array, values in the typed field as TF Serving sends them.

    Raises:
      ServingError: UNIMPLEMENTED: a type that has no field.
    """
    number = _TYPES.get(array.dtype.newbyteorder("<") if array.dtype.kind in "fiu" else array.dtype)
    if number is None:
        raise ServingError(Code.UNIMPLEMENTED, f"outputs of type {array.dtype} cannot be sent")
    proto.dtype = number
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    getattr(proto, _KINDS[number].field).extend(array.ravel().tolist())


def _shaped(array: Array, shape: tuple[int, ...], name: str) -> Array:
    try:
        return array.reshape(shape)
    except ValueError:
        # More dimensions than numpy has; or none of the values, but 2^80 places beside a zero.
        raise _parsing_error(name) from None


def _parsing_error(name: str) -> ServingError:
    return invalid(f"tensor parsing error: {name}")
