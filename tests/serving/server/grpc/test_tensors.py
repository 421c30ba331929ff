"""TensorProto to numpy and back, held against TensorFlow's own conversion."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2

from serving.errors import Code, ServingError
from serving.server.grpc.tensors import array_from_proto, array_to_proto

NUMBERS = hnp.arrays(
    dtype=st.sampled_from(["f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
STRINGS = st.lists(st.binary(max_size=8), max_size=6)


@given(array=NUMBERS)
def test_numbers_are_read_as_tensorflow_reads_them(array: np.ndarray) -> None:
    read = array_from_proto(tf.make_tensor_proto(array), name="x")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@given(array=NUMBERS)
def test_tensorflow_reads_the_numbers_that_are_written(array: np.ndarray) -> None:
    proto = tensor_pb2.TensorProto()
    array_to_proto(array, proto)
    written = tf.make_ndarray(proto)
    assert written.dtype == array.dtype
    assert written.shape == array.shape
    np.testing.assert_array_equal(written, array)
    np.testing.assert_array_equal(array_from_proto(proto, name="x"), array)


@given(values=STRINGS)
def test_strings_keep_every_byte(values: list[bytes]) -> None:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    proto = tensor_pb2.TensorProto()
    array_to_proto(array, proto)
    read = array_from_proto(proto, name="x")
    assert read.tolist() == tf.make_ndarray(proto).tolist() == values


def test_values_are_sent_in_the_field_of_their_type() -> None:
    proto = tensor_pb2.TensorProto()
    array_to_proto(np.array([0.5, 2.0], np.float32), proto)
    assert list(proto.float_val) == [0.5, 2.0]
    assert not proto.tensor_content


def test_the_last_value_stands_for_those_left_out() -> None:
    proto = tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1, 2])
    proto.tensor_shape.dim.add().size = 4
    np.testing.assert_array_equal(array_from_proto(proto, name="x"), [1, 2, 2, 2])


@given(
    dtype=st.integers(0, 30),
    sizes=st.lists(st.integers(-(2**40), 2**40), max_size=4),
    content=st.binary(max_size=16),
    floats=st.lists(st.floats(width=32), max_size=4),
    ints=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
    strings=STRINGS,
)
def test_whatever_is_sent_is_read_or_refused(
    dtype: int,
    sizes: list[int],
    content: bytes,
    floats: list[float],
    ints: list[int],
    strings: list[bytes],
) -> None:
    proto = tensor_pb2.TensorProto(
        dtype=dtype, tensor_content=content, float_val=floats, int_val=ints, string_val=strings
    )
    for size in sizes:
        proto.tensor_shape.dim.add().size = size
    read = array_or_error(proto)
    if isinstance(read, ServingError):
        assert (read.code, read.message) == (Code.INVALID_ARGUMENT, "tensor parsing error: x")
    else:
        assert list(read.shape) == sizes


def array_or_error(proto: tensor_pb2.TensorProto) -> np.ndarray | ServingError:
    try:
        return array_from_proto(proto, name="x")
    except ServingError as error:
        return error


def test_a_few_bytes_do_not_become_gigabytes() -> None:
    proto = tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1])
    proto.tensor_shape.dim.add().size = 2**36
    with pytest.raises(ServingError, match="tensor parsing error"):
        array_from_proto(proto, name="x")


def test_types_without_a_field_cannot_be_sent() -> None:
    with pytest.raises(ServingError, match="datetime64") as error:
        array_to_proto(np.zeros(1, "datetime64[s]"), tensor_pb2.TensorProto())
    assert error.value.code is Code.UNIMPLEMENTED
