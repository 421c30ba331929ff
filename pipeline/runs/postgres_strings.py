r"""Keeps backslashes in PostgreSQL, which ML Metadata's client cannot write.

It takes the quotes off what libpq's PQescapeLiteral returns and puts its own on. But of a text with
a backslash that is `E'...'` instead of `'...'`, and the statement no longer parses (ML Metadata
1.21, `syntax error at or near`), or means something else. TFX's properties, JSON in JSON, are full
of backslashes. So another character stands for them in the database.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
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
        sent = type(request)()
        sent.CopyFrom(request)
        replace_in_strings(sent, "\\", STAND_IN)
        original(store, method, sent, response)
        replace_in_strings(response, STAND_IN, "\\")

    setattr(call, _MENDED, True)
    MetadataStore._pywrap_cc_call = call


def replace_in_strings(message: Message, old: str, new: str) -> None:
    """Replaces text in all strings of a message, keys of maps among them, in place."""
    field: Any
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            if not _is_repeated(value):
                setattr(message, field.name, value.replace(old, new))
            else:
                value[:] = [text.replace(old, new) for text in value]
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.message_type.GetOptions().map_entry:
                _replace_in_map(value, old, new)
            else:
                for inner in value if _is_repeated(value) else [value]:
                    replace_in_strings(inner, old, new)


def _replace_in_map(entries: Any, old: str, new: str) -> None:
    for key in list(entries):
        value = entries[key]
        other = key.replace(old, new) if isinstance(key, str) else key
        if isinstance(value, Message):
            replace_in_strings(value, old, new)
            if other != key:
                entries[other].CopyFrom(entries[key])
        else:
            entries[other] = value.replace(old, new) if isinstance(value, str) else value
        if other != key:
            del entries[key]


def _is_repeated(value: Any) -> bool:
    return not isinstance(value, (str, Message))
