"""Strings of any kind survive ML Metadata in PostgreSQL."""

import ml_metadata
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_metadata import MetadataStore
from ml_metadata.errors import StatusError
from ml_metadata.proto import metadata_store_pb2

from pipeline.runs.history import RunHistory, RunRecord
from pipeline.runs.metadata_store import parse_url
from pipeline.runs.postgres_strings import STAND_IN, keep_backslashes, replaced

HARD = [
    "\\",
    "a\\",
    "\\'; DROP TABLE context; --",
    '{"a": "{\\"b\\": 1}"}',
    "it's",
    "ü\n\t\\n",
    "%s",
]
texts = st.text(st.characters(codec="utf-8", exclude_characters=STAND_IN))


@given(st.dictionaries(texts, texts), texts)
def test_what_is_replaced_comes_back(values: dict[str, str], name: str) -> None:
    context = metadata_store_pb2.Context(name=name, id=7)
    for key, value in values.items():
        context.custom_properties[key].string_value = value
        context.properties[key].struct_value.update({key: value})
    sent = replaced(context, "\\", STAND_IN)
    assert "\\" not in sent.name
    assert not any("\\" in key for key in sent.custom_properties)
    assert replaced(sent, STAND_IN, "\\") == context


def test_ml_metadata_still_cannot_write_a_backslash(empty_database: str) -> None:
    connection = parse_url(empty_database).connection()
    store = ml_metadata.MetadataStore(connection)
    assert hasattr(MetadataStore._pywrap_cc_call, "__wrapped__")
    kind = metadata_store_pb2.ArtifactType(name="Plain")
    artifact = metadata_store_pb2.Artifact(type_id=store.put_artifact_type(kind), name="a\\b")
    with pytest.MonkeyPatch.context() as patch:
        original = MetadataStore._pywrap_cc_call.__wrapped__
        patch.setattr(MetadataStore, "_pywrap_cc_call", original)
        with pytest.raises(StatusError, match="syntax error"):
            store.put_artifacts([artifact])
    assert store.put_artifacts([artifact])


def test_any_string_is_kept(empty_database: str) -> None:
    connection = parse_url(empty_database).connection()
    keep_backslashes()  # a second time, which changes nothing
    store = ml_metadata.MetadataStore(connection)
    type_id = store.put_artifact_type(metadata_store_pb2.ArtifactType(name="Hard\\Strings"))
    for text in HARD:
        artifact = metadata_store_pb2.Artifact(type_id=type_id, uri=f"/{text}", name=text)
        artifact.custom_properties["of\\any kind"].string_value = text
        (number,) = store.put_artifacts([artifact])
        (found,) = store.get_artifacts_by_id([number])
        assert (found.name, found.uri) == (text, f"/{text}")
        assert found.custom_properties["of\\any kind"].string_value == text
        assert store.get_artifact_by_type_and_name("Hard\\Strings", text).id == number
        assert [one.id for one in store.get_artifacts_by_uri(f"/{text}")] == [number]


@pytest.mark.parametrize("error", HARD)
def test_errors_of_runs_are_kept(empty_database: str, error: str) -> None:
    record = RunRecord("a", "failed", 1.0, error=error)
    RunHistory(parse_url(empty_database).connection()).record(record)
    assert RunHistory(parse_url(empty_database).connection()).runs() == [record]
