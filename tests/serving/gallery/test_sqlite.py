"""What only SQLite galleries have to get right: their file, and that removed data leave it."""

import random
import sqlite3
from pathlib import Path

import apsw
import numpy as np
import pytest

from serving.errors import Code, ServingError
from serving.gallery.gallery import Gallery
from serving.gallery.sqlite import store as sqlite_store
from serving.gallery.sqlite.store import SqliteStore
from tests.serving.gallery.fakes import FakeModels, photo

MODELS = FakeModels(dimensions=128)


def files_of(path: Path) -> bytes:
    """The database with its write-ahead log."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(path.name + "*")))


def traces(person: str, content: bytes) -> list[str]:
    """What of a person's name, image and vectors is found in the files."""
    image = photo(person)
    needles = {"name": person.encode(), "image": image[48:96], "end of the image": image[-48:]}
    for version in ("1", "2"):
        vector = MODELS.embed([image], version=version)[0].astype(np.float32).tobytes()
        needles |= {f"vector {version}, {at}": vector[at : at + 16] for at in range(0, 512, 64)}
    return [name for name, needle in needles.items() if needle in content]


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_removed_person_leaves_no_trace(tmp_path: Path, in_memory: bool) -> None:
    path = tmp_path / "gallery.db"
    gallery = Gallery(SqliteStore(path, in_memory=in_memory), FakeModels(dimensions=128))
    with gallery:
        people = [f"employee-{number:04d}-x" for number in range(120)]
        gallery.enroll_many([(person, [photo(person)]) for person in people])
        assert len(traces(people[5], files_of(path))) > 3
        gallery.identify(photo(people[0]))
        leaving = random.Random(1).sample(people, 80)
        for person in leaving:
            assert gallery.remove(person).erased
        content = files_of(path)
        assert [person for person in leaving if traces(person, content)] == []
        staying = sorted(set(people) - set(leaving))
        assert all(traces(person, content) for person in staying)
        for person in staying[:20]:
            assert gallery.identify(photo(person, 1)).name == person


def test_vectors_of_every_version_go_in_the_middle_of_a_rebuild_and_after_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gallery.db"
    models = FakeModels(dimensions=128)
    people = [f"employee-{number:04d}-x" for number in range(100)]
    with Gallery(SqliteStore(path), models) as gallery:
        gallery.enroll_many([(person, [photo(person)]) for person in people])
        models.newest = "2"

        def leave(done: int, _: int) -> None:
            if done == 64:
                assert "vector 2, 0" in traces(people[0], files_of(path))
                assert gallery.remove(people[0]).erased
                assert traces(people[0], files_of(path)) == []

        gallery.rebuild(leave)
        content = files_of(path)
        assert traces(people[0], content) == []
        # The old version's vectors went with it.
        assert not [t for p in people for t in traces(p, content) if t.startswith("vector 1")]
        assert [p for p in people[1:] if "vector 2, 0" not in traces(p, content)] == []


def test_a_reader_in_the_way_is_reported_and_erasing_again_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "ERASE_MILLISECONDS", 50)
    path = tmp_path / "gallery.db"
    with Gallery(SqliteStore(path), FakeModels()) as gallery:
        gallery.enroll("Ada", [photo("Ada")])
        backup = apsw.Connection(str(path))
        backup.execute("BEGIN")
        backup.execute("SELECT count(*) FROM image").fetchall()
        removal = gallery.remove("Ada")
        assert (removal.images, removal.erased) == (1, False)
        backup.execute("ROLLBACK")
        backup.close()
        assert gallery.erase()
        assert traces("Ada", files_of(path)) == []


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    path = tmp_path / "gallery.db"
    with Gallery(SqliteStore(path), FakeModels()) as gallery:
        gallery.enroll("Ada", [photo("Ada")])
        modes = {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == {0o600}


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
