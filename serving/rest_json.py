"""Bodies of TF Serving's predict API as JSON."""

import json
import re
from typing import Any, Final, NamedTuple

import orjson

from serving.errors import Code, ServingError

Json = Any

MAX_QUOTED: Final = 200
"""Longest value repeated in a message, characters."""


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
