"""Converts `TensorProto` to numpy and back, without trusting the sender."""

import math
from typing import Final

import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving.errors import Code, ServingError, invalid
from serving.server.batching import Array

# A proto may give fewer values than its shape has and mean the last one repeated: a few bytes
# must not become gigabytes.
_MAX_REPEATED: Final = 1 << 20
_FIELDS: Final = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    **dict.fromkeys((tf.int32, tf.int16, tf.int8, tf.uint8, tf.uint16), "int_val"),
    tf.uint32: "uint32_val",
    tf.int64: "int64_val",
    tf.uint64: "uint64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
}


def array_from_proto(proto: tensor_pb2.TensorProto, *, name: str) -> Array:
    """The tensor as an array; strings as `bytes` in an object array.

    Args:
      proto: with values in its typed field or, numbers only, in `tensor_content`.
      name: of the input, for the message.

    Raises:
      ServingError: INVALID_ARGUMENT: values and shape or type do not fit together.
    """
    try:
        field = _FIELDS[tf.dtypes.as_dtype(proto.dtype)]
        sizes = [dim.size for dim in proto.tensor_shape.dim]
        if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
            raise ValueError("not the shape of a value")
        if not proto.tensor_content:
            given, wanted = len(getattr(proto, field)), math.prod(sizes)
            if given > wanted or (given < wanted and (not given or wanted > _MAX_REPEATED)):
                raise ValueError("too few values, or too many")
        array: Array = tf.make_ndarray(proto)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise invalid(f"tensor parsing error: {name}") from None
    return array


def array_to_proto(array: Array, proto: tensor_pb2.TensorProto) -> None:
    """Fills `proto` with the array, values in the typed field as TF Serving sends them.

    Raises:
      ServingError: UNIMPLEMENTED: a type that has no field.
    """
    try:
        dtype = tf.dtypes.as_dtype(array.dtype)
        field = _FIELDS[dtype]
    except (KeyError, TypeError):
        message = f"outputs of type {array.dtype} cannot be sent"
        raise ServingError(Code.UNIMPLEMENTED, message) from None
    proto.dtype = dtype.as_datatype_enum
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    getattr(proto, field).extend(array.ravel().tolist())
