r"""Keeps backslashes in PostgreSQL, which ML Metadata's client cannot write.

It takes the quotes off what libpq's PQescapeLiteral returns and puts its own on. But of a text with
a backslash that is `E'...'` instead of `'...'`, and the statement no longer parses (ML Metadata
1.21, `syntax error at or near`), or means something else. TFX's properties, JSON in JSON, are full
of backslashes. So another character stands for them in the database.
"""

from collections.abc import Callable, Mapping, MutableSequence
from functools import wraps
from typing import Any, Final

from google.protobuf.message import Message
from ml_metadata import MetadataStore

STAND_IN: Final = "\ue05c"
"""Of Unicode's private use area, which nobody else assigns a meaning."""
_MENDED: Final = "_keeps_backslashes"


def keep_backslashes() -> None:
    """Makes stores in PostgreSQL, of this process, take and return any string.

    Replaces a private method of ML Metadata 1.21, through which all requests go.
    tests/pipeline/runs/test_postgres_strings.py fails where ML Metadata has another one, and where
    it writes backslashes itself, so that this module can go.
    """
    original = MetadataStore._pywrap_cc_call
    if hasattr(original, _MENDED):
        return

    @wraps(original)
    def call(
        store: MetadataStore, method: Callable[..., Any], request: Message, response: Message
    ) -> None:
        if not store._config.HasField("postgresql"):
            original(store, method, request, response)
            return
        original(store, method, replaced(request, "\\", STAND_IN), response)
        response.CopyFrom(replaced(response, STAND_IN, "\\"))

    setattr(call, _MENDED, True)
    MetadataStore._pywrap_cc_call = call


def replaced(value: Any, old: str, new: str) -> Any:
    """A message, or what a field holds, with text replaced in all strings, keys of maps too."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, Message):
        fields = {field.name: replaced(inner, old, new) for field, inner in value.ListFields()}
        return type(value)(**fields)
    if isinstance(value, Mapping):
        return {replaced(key, old, new): replaced(value[key], old, new) for key in value}
    if isinstance(value, MutableSequence):
        return [replaced(inner, old, new) for inner in value]
    return value
