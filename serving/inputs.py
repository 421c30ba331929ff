"""Holds the inputs of a request against a signature, with TF Serving's messages."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from serving.errors import Code, ServingError

Array = npt.NDArray[Any]
DEFAULT_SIGNATURE: Final = "serving_default"


class InputSpec:
    """Names, types and shapes of a signature's inputs.

    Args:
      tensors: `TensorInfo` by input name.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._specs: dict[str, tuple[np.dtype[Any] | None, str, tuple[int, ...] | None]] = {}
        for name in sorted(tensors):
            info = tensors[name]
            dtype = tf.dtypes.as_dtype(info.dtype)
            unknown = info.tensor_shape.unknown_rank
            shape = None if unknown else tuple(dim.size for dim in info.tensor_shape.dim)
            numpy_type = None if dtype == tf.string else np.dtype(dtype.as_numpy_dtype)
            self._specs[name] = (numpy_type, dtype.name, shape)

    def check(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs, strings as `bytes` in object arrays.

        Raises:
          ServingError: INVALID_ARGUMENT: a name is missing or unknown, or a type or shape is not
            the signature's.
        """
        if inputs.keys() != self._specs.keys():
            raise ServingError(Code.INVALID_ARGUMENT, self._mismatch(inputs))
        checked = {}
        for position, (name, (dtype, type_name, shape)) in enumerate(self._specs.items()):
            array = np.asarray(inputs[name])
            fits = _as_bytes(array) if dtype is None else (array if array.dtype == dtype else None)
            if fits is None:
                raise ServingError(
                    Code.INVALID_ARGUMENT,
                    f"Expects arg[{position}] to be {type_name} but {_type_name(array)} is provided"
                    f" (input {name!r})",
                )
            if shape is not None and not _shape_fits(fits.shape, shape):
                raise ServingError(
                    Code.INVALID_ARGUMENT,
                    f"input {name!r} has shape {list(fits.shape)}, "
                    f"which is not of the form {list(shape)}",
                )
            checked[name] = fits
        return checked

    def _mismatch(self, inputs: Mapping[str, Array]) -> str:
        sent, known = sorted(inputs), sorted(self._specs)
        return (
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({{{','.join(sent)}}}) != len({{{','.join(known)}}}). "
            f"Sent extra: {{{','.join(sorted(set(sent) - set(known)))}}}. "
            f"Missing but required: {{{','.join(sorted(set(known) - set(sent)))}}}."
        )


def _as_bytes(array: Array) -> Array | None:
    # numpy's fixed-width bytes have lost trailing zeros already, but what is there is a string.
    if array.dtype.kind == "S":
        return array.astype(object)
    if array.dtype != object or not all(type(value) is bytes for value in array.flat):
        return None
    return array


def _type_name(array: Array) -> str:
    if array.dtype.kind in "OSU":
        return "string" if _as_bytes(array) is not None else "an array of Python objects"
    return {"float32": "float", "float64": "double"}.get(array.dtype.name, array.dtype.name)


def _shape_fits(actual: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(actual) == len(wanted) and all(
        size in (-1, real) for real, size in zip(actual, wanted, strict=True)
    )
