"""A gallery in PostgreSQL with pgvector, for many users and machines."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import psycopg

from serving.errors import Code, ServingError
from serving.gallery.postgres.connection import (
    LAYOUT_LOCK,
    PostgresSession,
    database_errors,
    open_pool,
)
from serving.gallery.records import Counts, GalleryModel, Template, Vectors
from serving.gallery.store import Session, Store, vector_table
from serving.gallery.threshold import Impostors

MAX_DIMENSIONS: Final = 2000
"""What pgvector's HNSW takes."""
HNSW: Final = "m = 24, ef_construction = 128"
"""With pgvector's own 16 and 64 a search among a million finds the nearest too seldom."""
EXACT_COUNT: Final = 1_000
"""Thresholds hardly depend on whether larger galleries are counted exactly, or now."""
COUNT_SECONDS: Final = 10.0
_log = logging.getLogger(__name__)


class PostgresStore(Store):
    """Found by an HNSW index for Manhattan distance, which misses the nearest once in a while.

    Vectors go with their identity (ON DELETE CASCADE). Those of a model whose table was dropped
    are an UndefinedTable, and so ModelChanged.
    """

    _for_share = " FOR SHARE"
    _for_update = " FOR UPDATE"

    def __init__(self, url: str) -> None:
        """Connects to `postgresql://user:password@host/database`, and makes the tables."""
        self._pool = open_pool(url)
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
        with database_errors(), self._pool.connection() as connection:
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
