"""The vectors of one version of the model in PostgreSQL, in a table of their own."""

import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import psycopg

from serving.errors import Code, ServingError
from serving.gallery.postgres.connection import Connection, value
from serving.gallery.records import GalleryModel, Hit, Template, Vectors, mean_with

MAX_DIMENSIONS: Final = 2000
"""What pgvector's HNSW takes."""
HNSW: Final = "m = 24, ef_construction = 128"
"""With pgvector's own 16 and 64 a search among a million finds the nearest too seldom."""
_log = logging.getLogger(__name__)


def vector_table(key: int) -> str:
    """The table of a model's vectors; the key is a number, so the name is safe in SQL."""
    return f"oneshot.vector_{int(key)}"


def check_dimensions(dimensions: int) -> None:
    """Raises ServingError (FAILED_PRECONDITION) where they are more than an index takes."""
    if dimensions > MAX_DIMENSIONS:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"the model's vectors have {dimensions} dimensions, and pgvector's HNSW index takes "
            f"{MAX_DIMENSIONS}: use an SQLite gallery, or train with a smaller "
            "train.embedding_size",
        )


def create(connection: Connection, key: int, *, dimensions: int) -> None:
    """Makes room for vectors, without an index."""
    table = vector_table(key)
    connection.execute(
        f"CREATE TABLE {table} ("
        "identity bigint PRIMARY KEY REFERENCES oneshot.identity ON DELETE CASCADE,"
        f" images integer NOT NULL, vector vector({int(dimensions)}) NOT NULL)"
    )
    # In the row and not beside it: one page less to read for each vector. Statistics: see SCHEMA.
    connection.execute(
        f"ALTER TABLE {table} ALTER vector SET STORAGE PLAIN, ALTER vector SET STATISTICS 0"
    )


def build_index(connection: Connection, model: GalleryModel) -> None:
    """Builds the index, if it is not there."""

    def tell(notice: psycopg.errors.Diagnostic) -> None:
        # pgvector says so when a graph outgrows the memory, and then takes many times longer.
        if notice.message_primary and "maintenance_work_mem" in notice.message_primary:
            _log.warning("PostgreSQL: %s: raise it", notice.message_primary)

    connection.add_notice_handler(tell)
    try:
        connection.execute(
            f"CREATE INDEX IF NOT EXISTS vector_{int(model.key)}_hnsw"
            f" ON {vector_table(model.key)} USING hnsw (vector vector_l1_ops) WITH ({HNSW})"
        )
    finally:
        connection.remove_notice_handler(tell)


def drop(connection: Connection, key: int) -> None:
    """Deletes all of them."""
    connection.execute(f"DROP TABLE {vector_table(key)}")


def put(connection: Connection, model: GalleryModel, template: Template) -> None:
    """Stores someone's mean in place of the one there was."""
    connection.execute(
        f"INSERT INTO {vector_table(model.key)} (identity, images, vector) VALUES (%s, %s, %s)"
        " ON CONFLICT (identity) DO UPDATE"
        " SET images = EXCLUDED.images, vector = EXCLUDED.vector",
        [template.key, template.images, template.mean],
    )


def fold(
    connection: Connection, model: GalleryModel, identity: int, vectors: Sequence[Vectors]
) -> None:
    """Takes more vectors into the mean of someone whose row is locked."""
    before = connection.execute(
        f"SELECT images, vector FROM {vector_table(model.key)} WHERE identity = %s", [identity]
    ).fetchone()
    count, mean = (0, None) if before is None else (before[0], _array(before[1]))
    put(
        connection,
        model,
        Template(identity, count + len(vectors), mean_with(mean, count, vectors)),
    )


def nearest(connection: Connection, model: GalleryModel, query: Vectors, count: int) -> list[Hit]:
    """The `count` nearest, as far as the index finds them."""
    found = connection.execute(
        "SELECT name, near.distance FROM"
        f" (SELECT identity, vector <+> %(query)s AS distance FROM {vector_table(model.key)}"
        " ORDER BY vector <+> %(query)s LIMIT %(count)s) AS near"
        " JOIN oneshot.identity ON identity.id = near.identity"
        " ORDER BY near.distance, near.identity",
        {"query": query, "count": count},
        prepare=True,
    ).fetchall()
    return [Hit(*row) for row in found]


def mean_of(connection: Connection, model: GalleryModel, name: str) -> Vectors | None:
    """`[D]`, None if there is no such name."""
    vector = value(
        connection,
        f"SELECT vector FROM {vector_table(model.key)} WHERE identity ="
        " (SELECT id FROM oneshot.identity WHERE name = %s)",
        [name],
    )
    return None if vector is None else _array(vector)


def sample(connection: Connection, model: GalleryModel, people: int) -> Vectors:
    """`[N, D]`, up to so many, the same at each call."""
    found = connection.execute(
        # Scattered, for those who enrolled one after the other may be of one kind.
        f"SELECT vector FROM {vector_table(model.key)} ORDER BY hashint8(identity), identity"
        " LIMIT %s",
        [people],
    ).fetchall()
    vectors = [_array(row[0]) for row in found]
    return np.array(vectors, np.float32).reshape(-1, model.facts.dimensions)


def incomplete(columns: str, model: GalleryModel) -> str:
    """Query of people `i` after a key, up to a limit, whose images are not all in their vector."""
    return (
        f"SELECT {columns} FROM oneshot.identity AS i"
        f" LEFT JOIN {vector_table(model.key)} AS v ON v.identity = i.id"
        " WHERE i.id > %s AND coalesce(v.images, 0) <>"
        " (SELECT count(*) FROM oneshot.image WHERE identity = i.id) ORDER BY i.id LIMIT %s"
    )


def _array(stored: Any) -> Vectors:
    return np.asarray(stored.to_numpy(), np.float32)
