"""What an SQLite gallery's file may be called, and what it must not be."""

import sqlite3
from pathlib import Path

import pytest

from serving.errors import Code, ServingError
from serving.gallery.gallery import Gallery
from serving.gallery.sqlite.store import SqliteStore
from tests.serving.gallery.fakes import FakeModels, photo


@pytest.mark.parametrize(
    "name", [":memory:", "file:gallery.db?mode=memory", "gallery.db?mode=memory", "-", "a b%20c#d"]
)
def test_a_file_is_a_file_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with Gallery(SqliteStore(Path(name)), FakeModels()) as gallery:
        gallery.enroll("Ada", [photo("Ada")])
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with Gallery(SqliteStore(Path(name)), FakeModels()) as gallery:
        assert gallery.identity("Ada").name == "Ada"


def test_what_is_not_a_gallery_is_left_as_it_is(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("no database, but long enough to be taken for the header of one " * 99)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE identity (name TEXT)")
    connection.close()
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(ServingError, match=path.name) as error:
            SqliteStore(path)
        assert error.value.code is Code.FAILED_PRECONDITION
        assert path.read_bytes() == before
