"""A gallery in PostgreSQL with pgvector, for many users and machines."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import psycopg
from pgvector.psycopg import register_vector
from psycopg_pool import ConnectionPool, PoolTimeout

from data_ingest.errors import refuse_unescaped
from serving.errors import Code, ServingError
from serving.gallery.records import Counts, GalleryModel, ModelChanged, Template, Vectors
from serving.gallery.store import Session, Store, vector_table
from serving.gallery.threshold import Impostors

CONNECT_SECONDS: Final = 10
CONNECTIONS: Final = 8
IDLE_SECONDS: Final = 5.0
LAYOUT_LOCK: Final = 0x0551A9E5
"""Advisory lock of whoever changes tables or the active model."""
EF_SEARCH: Final = 240
"""Candidates that HNSW keeps while it searches: more find the nearest more surely, and slower.

Among a million, 240 are the fewest tried that found 99.9 % of them, see docs/speed.md.
"""
MIN_PGVECTOR: Final = (0, 8)
MAX_DIMENSIONS: Final = 2000
"""What pgvector's HNSW takes."""
HNSW: Final = "m = 24, ef_construction = 128"
"""With pgvector's own 16 and 64 a search among a million finds the nearest too seldom."""
EXACT_COUNT: Final = 1_000
"""Thresholds hardly depend on whether larger galleries are counted exactly, or now."""
COUNT_SECONDS: Final = 10.0

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
SETTINGS: Final = "CREATE TABLE oneshot.setting (key text PRIMARY KEY, value text NOT NULL)"
"""Earlier releases made no such table."""

_log = logging.getLogger(__name__)


class PostgresSession(Session):
    """A connection; psycopg's placeholder is `%s`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        cursor = self.connection.execute(sql.replace("%", "%%").replace("?", "%s"), values)
        return cursor.fetchall() if cursor.description else []


class PostgresStore(Store):
    """Found by an HNSW index for Manhattan distance, which misses the nearest once in a while.

    Vectors go with their identity (ON DELETE CASCADE). Those of a model whose table was dropped
    are an UndefinedTable, and so ModelChanged.
    """

    _for_share = " FOR SHARE"
    _for_update = " FOR UPDATE"

    def __init__(self, url: str) -> None:
        """Connects to `postgresql://user:password@host/database`, and makes the tables."""
        self._pool = _open_pool(url)
        self._names = 0, 0.0

    def activate(
        self, model: GalleryModel, *, instead_of: GalleryModel | None, impostors: Impostors | None
    ) -> bool:
        # Building the index row by row while a gallery is embedded would take many times longer.
        with self._layout() as session:
            _build_index(session, model)
        return super().activate(model, instead_of=instead_of, impostors=impostors)

    def erase(self, *, thorough: bool) -> bool:
        """Writes all tables anew; deleted rows stay in PostgreSQL's files until then."""
        if not thorough:
            return False
        with self._read() as session:
            models = session.rows("SELECT id FROM oneshot.model")
            tables = ["oneshot.identity", "oneshot.image", "oneshot.cohort"]
            for table in [*tables, *(vector_table(key) for (key,) in models)]:
                session.rows(f"VACUUM (FULL) {table}")
            try:
                # What the log holds of them ends up in segments that are not needed any more.
                session.rows("SELECT pg_switch_wal()")
                session.rows("CHECKPOINT")
            except psycopg.errors.InsufficientPrivilege as error:
                _log.warning(
                    "the write-ahead log holds what was removed until PostgreSQL recycles it (%s)",
                    error,
                )
        return True

    def nearest(
        self, query: Vectors, count: int, *, model: GalleryModel
    ) -> list[tuple[str, float]]:
        """As far as the index finds them."""
        with self._read() as session:
            return session.connection.execute(
                "SELECT name, near.distance FROM"
                " (SELECT identity, vector <+> %(query)s AS distance"
                f" FROM {vector_table(model.key)}"
                " ORDER BY vector <+> %(query)s LIMIT %(count)s) AS near"
                " JOIN oneshot.identity ON identity.id = near.identity"
                " ORDER BY near.distance, near.identity",
                {"query": query, "count": count},
                prepare=True,
            ).fetchall()

    def counts(self) -> Counts:
        with self._read() as session:
            return Counts(
                session.value("SELECT count(*) FROM oneshot.identity"),
                session.value("SELECT count(*) FROM oneshot.image"),
            )

    def names(self) -> int:
        """Exact for small galleries, else what PostgreSQL found at its last look (ANALYZE)."""
        counted, at = self._names
        if time.monotonic() < at + COUNT_SECONDS * (counted >= EXACT_COUNT):
            return counted
        with self._read() as session:
            names: int = session.value(
                "SELECT reltuples::bigint FROM pg_class WHERE oid = 'oneshot.identity'::regclass"
            )
            if names < EXACT_COUNT:
                names = session.value("SELECT count(*) FROM oneshot.identity")
        self._names = names, time.monotonic()
        return names

    def close(self) -> None:
        self._pool.close()

    @contextmanager
    def _read(self) -> Iterator[PostgresSession]:
        with _database_errors(), self._pool.connection() as connection:
            yield PostgresSession(connection)

    @contextmanager
    def _write(self) -> Iterator[PostgresSession]:
        with self._read() as session, session.connection.transaction():
            yield session

    @contextmanager
    def _layout(self) -> Iterator[PostgresSession]:
        with self._write() as session:
            session.rows("SELECT pg_advisory_xact_lock(?)", [LAYOUT_LOCK])
            yield session

    def _create_vectors(self, session: Session, key: int, *, dimensions: int) -> None:
        """Without an index; raises ServingError where an index could not take them."""
        if dimensions > MAX_DIMENSIONS:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f"the model's vectors have {dimensions} dimensions, and pgvector's HNSW index "
                f"takes {MAX_DIMENSIONS}: use an SQLite gallery, or train with a smaller "
                "train.embedding_size",
            )
        table = vector_table(key)
        session.rows(
            f"CREATE TABLE {table} ("
            "identity bigint PRIMARY KEY REFERENCES oneshot.identity ON DELETE CASCADE,"
            f" images integer NOT NULL, vector vector({int(dimensions)}) NOT NULL)"
        )
        # In the row and not beside it: one page less to read for each vector. Statistics: see
        # SCHEMA.
        session.rows(
            f"ALTER TABLE {table} ALTER vector SET STORAGE PLAIN, ALTER vector SET STATISTICS 0"
        )

    def _stored(self, model: GalleryModel) -> str:
        return vector_table(model.key)

    def _array(self, stored: Any) -> Vectors:
        return np.asarray(stored.to_numpy(), np.float32)

    def _put(self, session: Session, model: GalleryModel, template: Template) -> None:
        session.rows(
            f"INSERT INTO {vector_table(model.key)} (identity, images, vector) VALUES (?, ?, ?)"
            " ON CONFLICT (identity) DO UPDATE"
            " SET images = excluded.images, vector = excluded.vector",
            [template.key, template.images, template.mean],
        )


def _build_index(session: PostgresSession, model: GalleryModel) -> None:
    """Builds the index, if it is not there."""

    def tell(notice: psycopg.errors.Diagnostic) -> None:
        # pgvector says so when a graph outgrows the memory, and then takes many times longer.
        if notice.message_primary and "maintenance_work_mem" in notice.message_primary:
            _log.warning("PostgreSQL: %s: raise it", notice.message_primary)

    session.connection.add_notice_handler(tell)
    try:
        session.rows(
            f"CREATE INDEX IF NOT EXISTS vector_{int(model.key)}_hnsw"
            f" ON {vector_table(model.key)} USING hnsw (vector vector_l1_ops) WITH ({HNSW})"
        )
    finally:
        session.connection.remove_notice_handler(tell)


def _open_pool(url: str) -> ConnectionPool[Connection]:
    """Connects, and makes the tables if they are not there.

    Raises:
      ServingError: UNAVAILABLE: no answer; FAILED_PRECONDITION: no pgvector, or too old a one.
      InputError: as `refuse_unescaped`.
    """
    refuse_unescaped(url, "the gallery's URL")
    with _database_errors(), psycopg.connect(url, connect_timeout=CONNECT_SECONDS) as connection:
        _prepare(PostgresSession(connection))
    with _database_errors():
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
    if session.value("SELECT to_regclass('oneshot.setting')") is None:
        session.rows(SETTINGS)


@contextmanager
def _database_errors() -> Iterator[None]:
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
