"""What only PostgreSQL galleries have to get right."""

import logging
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from data_ingest.errors import InputError
from serving.errors import Code, ServingError
from serving.gallery.gallery import Gallery
from serving.gallery.open import open_store
from serving.gallery.postgres.store import MAX_DIMENSIONS
from tests.serving.gallery.fakes import FakeModels, photo

PEOPLE = [f"employee-{number:04d}-x" for number in range(60)]


def traces(folder: Path, person: str) -> list[str]:
    """Which of a person's data are in the files of a folder."""
    content = b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())
    image = photo(person)
    vector = FakeModels(dimensions=128).embed([image], version="1")[0].tobytes()
    needles = {
        "name": person.encode(),
        "image": image[-48:],
        "start of the vector": vector[:16],
        "end of the vector": vector[-16:],
    }
    return [name for name, needle in needles.items() if needle in content]


@pytest.fixture
def connection(empty_postgres: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(empty_postgres, autocommit=True) as connection:
        yield connection


@pytest.fixture
def data(connection: psycopg.Connection) -> Path:
    """PostgreSQL's folder."""
    row = connection.execute("SELECT current_setting('data_directory')").fetchone()
    assert row is not None
    return Path(row[0])


@pytest.fixture
def tables(connection: psycopg.Connection, data: Path) -> Path:
    row = connection.execute(
        "SELECT oid FROM pg_database WHERE datname = current_database()"
    ).fetchone()
    assert row is not None
    return data / "base" / str(row[0])


@pytest.mark.parametrize("password", ["to@ken", "to/ken", "12/to?ken", "to%ken", "%to#ken"])
def test_a_password_that_has_to_be_written_otherwise_is_not_shown(password: str) -> None:
    with pytest.raises(InputError, match=r"write @ / \? # and % .* as %40") as caught:
        open_store(f"postgresql://ann:{password}@127.0.0.1:1/x")
    assert "ken" not in str(caught.value)


def test_vectors_longer_than_an_index_takes_are_refused(
    empty_postgres: str, connection: psycopg.Connection
) -> None:
    with Gallery(open_store(empty_postgres), FakeModels(dimensions=MAX_DIMENSIONS + 1)) as gallery:
        with pytest.raises(ServingError, match=r"2001 dimensions.*2000.*SQLite") as error:
            gallery.enroll("Ada", [photo("Ada")])
        assert error.value.code is Code.FAILED_PRECONDITION
        assert gallery.status().counts == (0, 0)
    assert connection.execute("SELECT count(*) FROM oneshot.model").fetchone() == (0,)
    with Gallery(open_store(empty_postgres), FakeModels(dimensions=MAX_DIMENSIONS)) as gallery:
        gallery.enroll_many([(person, [photo(person)]) for person in PEOPLE[:3]])
        assert gallery.identify(photo(PEOPLE[1], 1)).candidates[0].name == PEOPLE[1]


def test_erasing_leaves_no_trace_in_tables_and_their_statistics(
    empty_postgres: str, connection: psycopg.Connection, tables: Path
) -> None:
    with Gallery(open_store(empty_postgres), FakeModels(dimensions=128)) as gallery:
        gallery.enroll_many([(person, [photo(person)]) for person in PEOPLE])
        # As autovacuum does, sooner or later: samples of columns go to pg_statistic.
        connection.execute("ANALYZE")
        connection.execute("CHECKPOINT")
        assert len(traces(tables, PEOPLE[3])) == 4
        for person in PEOPLE[:40]:
            assert gallery.remove(person) == (person, 1, False)
        assert gallery.erase()
    assert {person: found for person in PEOPLE[:40] if (found := traces(tables, person))} == {}
    assert all(len(traces(tables, person)) == 4 for person in PEOPLE[40:])


def test_erasing_ends_the_write_ahead_log_that_held_them(
    empty_postgres: str, connection: psycopg.Connection, data: Path
) -> None:
    connection.execute("ALTER SYSTEM SET wal_recycle = off")
    connection.execute("SELECT pg_reload_conf()")
    try:
        with Gallery(open_store(empty_postgres), FakeModels(dimensions=128)) as gallery:
            # In no other test: older segments, recycled, may still hold what those wrote.
            leaving = "employee-who-leaves"
            gallery.enroll_many([(person, [photo(person)]) for person in [*PEOPLE, leaving]])
            assert "image" in traces(data / "pg_wal", leaving)
            gallery.remove(leaving)
            assert gallery.erase()
        assert traces(data / "pg_wal", leaving) == []
    finally:
        connection.execute("ALTER SYSTEM RESET wal_recycle")
        connection.execute("SELECT pg_reload_conf()")


def test_a_role_without_privileges_beyond_its_tables_can_erase(
    empty_postgres: str,
    connection: psycopg.Connection,
    tables: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute("CREATE ROLE clerk LOGIN")
    try:
        connection.execute("CREATE SCHEMA oneshot AUTHORIZATION clerk")
        clerk = empty_postgres.replace("postgres:@", "clerk:@")
        assert clerk != empty_postgres
        with (
            Gallery(open_store(clerk), FakeModels(dimensions=128)) as gallery,
            caplog.at_level(logging.WARNING),
        ):
            gallery.enroll_many([(person, [photo(person)]) for person in PEOPLE])
            gallery.remove(PEOPLE[3])
            assert gallery.erase()
        assert "write-ahead log" in caplog.text
        connection.execute("CHECKPOINT")
        assert traces(tables, PEOPLE[3]) == []
    finally:
        connection.execute("DROP SCHEMA oneshot CASCADE")
        connection.execute("DROP OWNED BY clerk")
        connection.execute("DROP ROLE clerk")


def test_an_index_that_outgrows_the_memory_for_it_is_told(
    empty_postgres: str, connection: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.execute("ALTER ROLE postgres SET maintenance_work_mem = '1MB'")
    try:
        models = FakeModels(dimensions=1000)
        with Gallery(open_store(empty_postgres), models) as gallery:
            gallery.enroll_many([(f"{number}", [photo(f"{number}")]) for number in range(300)])
            models.newest = "2"
            with caplog.at_level(logging.WARNING):
                gallery.rebuild()
            assert gallery.identify(photo("7", 1)).name == "7"
    finally:
        connection.execute("ALTER ROLE postgres RESET maintenance_work_mem")
    assert "maintenance_work_mem" in caplog.text
