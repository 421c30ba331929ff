"""Connections to the database of a gallery, and its tables."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import psycopg
from pgvector.psycopg import register_vector
from psycopg_pool import ConnectionPool, PoolTimeout

from serving.errors import Code, ServingError
from serving.gallery.records import ModelChanged
from serving.gallery.store import Session

CONNECT_SECONDS: Final = 10
CONNECTIONS: Final = 8
IDLE_SECONDS: Final = 5.0
LAYOUT_LOCK: Final = 0x0551A9E5
"""Advisory lock of whoever changes tables or the active model."""
EF_SEARCH: Final = 240
"""Candidates that HNSW keeps while it searches: more find the nearest more surely, and slower.

Among a million, 240 are the fewest tried that found 99.9 % of them, see docs/serving.md.
"""
MIN_PGVECTOR: Final = (0, 8)

Connection = psycopg.Connection[tuple[Any, ...]]

SCHEMA: Final = """
CREATE TABLE oneshot.identity (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text COLLATE "C" NOT NULL UNIQUE,
  created double precision NOT NULL
);
CREATE TABLE oneshot.image (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  identity bigint NOT NULL REFERENCES oneshot.identity ON DELETE CASCADE,
  sha256 bytea NOT NULL UNIQUE,
  created double precision NOT NULL,
  content bytea NOT NULL
);
CREATE INDEX image_identity ON oneshot.image (identity);
CREATE TABLE oneshot.model (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  version text NOT NULL,
  bias double precision NOT NULL,
  probe bytea NOT NULL,
  state text NOT NULL CHECK (state IN ('building', 'active', 'retired')),
  impostors text,
  created double precision NOT NULL
);
CREATE UNIQUE INDEX one_active_model ON oneshot.model (state)
  WHERE state = 'active';
CREATE TABLE oneshot.cohort (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, person text NOT NULL, content bytea NOT NULL
);
-- ANALYZE would copy samples to pg_statistic, where they outlive those who are removed.
ALTER TABLE oneshot.identity ALTER name SET STATISTICS 0;
ALTER TABLE oneshot.image ALTER sha256 SET STATISTICS 0, ALTER content SET STATISTICS 0;
ALTER TABLE oneshot.cohort ALTER person SET STATISTICS 0, ALTER content SET STATISTICS 0;
"""
"""Each model's vectors are in a table of their own, `oneshot.vector_<model id>`."""


def open_pool(url: str) -> ConnectionPool[Connection]:
    """Connects, and makes the tables if they are not there.

    Raises:
      ServingError: UNAVAILABLE: no answer; FAILED_PRECONDITION: no pgvector, or too old a one.
    """
    with database_errors(), psycopg.connect(url, connect_timeout=CONNECT_SECONDS) as connection:
        _prepare(PostgresSession(connection))
    with database_errors():
        return ConnectionPool(
            url,
            min_size=1,
            max_size=CONNECTIONS,
            timeout=CONNECT_SECONDS,
            kwargs={"autocommit": True},
            configure=_configure,
            check=_IdleCheck(),
            open=True,
        )


class _IdleCheck:
    """Servers are restarted, and idle connections cut: noticed before a query is lost.

    Connections in use are not asked each time, which would take as long as a query.
    """

    def __init__(self) -> None:
        self._used: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()

    def __call__(self, connection: Connection) -> None:
        now = time.monotonic()
        if now > self._used.get(connection, 0.0) + IDLE_SECONDS:
            ConnectionPool.check_connection(connection)
        self._used[connection] = now


class PostgresSession(Session):
    """A connection; psycopg's placeholder is `%s`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        cursor = self.connection.execute(sql.replace("%", "%%").replace("?", "%s"), values)
        return cursor.fetchall() if cursor.description else []


def _configure(connection: Connection) -> None:
    register_vector(connection)
    # What is acknowledged must survive a crash, whatever the server's default is.
    connection.execute("SET synchronous_commit = on")
    connection.execute(f"SET hnsw.ef_search = {EF_SEARCH}")
    # Goes on searching where more are asked for than ef_search.
    connection.execute("SET hnsw.iterative_scan = strict_order")


def _prepare(session: PostgresSession) -> None:
    session.rows("SELECT pg_advisory_xact_lock(?)", [LAYOUT_LOCK])
    try:
        session.rows("CREATE EXTENSION IF NOT EXISTS vector")
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported) as error:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            "the database has no pgvector: install it and have an administrator run "
            "CREATE EXTENSION vector",
        ) from error
    version = str(session.value("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_PGVECTOR:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"the database has pgvector {version}, and at least 0.8 is needed: "
            "ALTER EXTENSION vector UPDATE",
        )
    # Looked for first: to ask for what is there takes privileges that a gallery can do without.
    if session.value("SELECT to_regnamespace('oneshot')") is None:
        session.rows("CREATE SCHEMA oneshot")
    if session.value("SELECT to_regclass('oneshot.cohort')") is None:
        session.rows(SCHEMA)


@contextmanager
def database_errors() -> Iterator[None]:
    """PostgreSQL's errors in the words of a gallery."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.ForeignKeyViolation) as error:
        # A model's table was dropped after a switch, or a name removed, in this very moment.
        raise ModelChanged from error
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
        raise ServingError(Code.RESOURCE_EXHAUSTED, f"PostgreSQL: {error}") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise ServingError(Code.PERMISSION_DENIED, f"PostgreSQL: {error}") from error
    except (psycopg.OperationalError, PoolTimeout) as error:
        raise ServingError(Code.UNAVAILABLE, f"PostgreSQL: {error}") from error
