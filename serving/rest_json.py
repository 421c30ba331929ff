"""Bodies of TF Serving's predict API as JSON."""

import contextlib
import gc
import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson

from serving.errors import Code, ServingError

Json = Any

MAX_QUOTED: Final = 200
"""Longest value repeated in a message, characters."""
MANY_VALUES: Final = 10_000
"""From so many on, the garbage collector is worth stopping."""


class PredictBody(NamedTuple):
    """A body read as JSON, of which the tensors wait for the signature to be known.

    Attributes:
      signature: '' where the body names none.
    """

    signature: str
    document: dict[str, Json]


def parse_body(body: bytes, *, max_values: int = 2_000_000) -> PredictBody:
    """Reads the JSON of a predict, classify or regress request.

    NaN, Infinity and -Infinity are numbers, as for TF Serving.

    Args:
      body: UTF-8.
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
    return PredictBody(signature, document)


def quoted(value: Json) -> str:
    """A value for a message: its JSON, cut short.

    TF Serving repeats a whole image to whoever got its format wrong.
    """
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):
        text = "[[...]]"
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def invalid(message: str) -> ServingError:
    """The error of a request that is wrong whatever the server does."""
    return ServingError(Code.INVALID_ARGUMENT, message)


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


def _parse_json(body: bytes) -> Json:
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
