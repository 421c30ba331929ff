"""A gallery in PostgreSQL with pgvector, for many users and machines."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from serving.errors import Code, ServingError
from serving.gallery.postgres_connection import (
    LAYOUT_LOCK,
    Connection,
    database_errors,
    open_pool,
)
from serving.gallery.records import (
    CohortImage,
    GalleryModel,
    Hit,
    Identity,
    ImageTaken,
    ModelChanged,
    ModelFacts,
    NewImage,
    Person,
    Template,
    Vectors,
    mean_with,
)
from serving.gallery.store import Counts
from serving.gallery.threshold import Impostors

MAX_DIMENSIONS: Final = 2000
"""What pgvector's HNSW takes."""
EXACT_COUNT: Final = 1_000
"""Thresholds hardly depend on whether larger galleries are counted exactly, or now."""
COUNT_SECONDS: Final = 10.0
HNSW: Final = "m = 16, ef_construction = 64"

_MODEL: Final = "SELECT id, version, bias, probe, state, impostors FROM oneshot.model"


class PostgresStore:
    """Found by an HNSW index for Manhattan distance, which misses the nearest once in a while."""

    def __init__(self, url: str) -> None:
        """Connects to `postgresql://user:password@host/database`, and makes the tables."""
        self._pool = open_pool(url)
        self._names = 0, 0.0

    def active(self) -> GalleryModel | None:
        with self._connection() as connection:
            row = connection.execute(f"{_MODEL} WHERE state = 'active'").fetchone()
        return None if row is None else _model(row)

    def begin(self, facts: ModelFacts) -> GalleryModel:
        if facts.dimensions > MAX_DIMENSIONS:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f"the model's vectors have {facts.dimensions} dimensions, and pgvector's HNSW "
                f"index takes {MAX_DIMENSIONS}: use an SQLite gallery, or train with a smaller "
                "train.embedding_size",
            )
        with self._layout() as connection:
            known = connection.execute(
                f"{_MODEL} WHERE version = %s AND state <> 'retired'", [facts.version]
            ).fetchone()
            if known is not None:
                return _model(known)
            # What another rebuild began for yet another version is of no use any more.
            connection.execute(
                "UPDATE oneshot.model SET state = 'retired' WHERE state = 'building'"
            )
            key = _value(
                connection,
                "INSERT INTO oneshot.model (version, bias, probe, state, created)"
                " VALUES (%s, %s, %s, 'building', %s) RETURNING id",
                [facts.version, facts.bias, facts.probe.tobytes(), time.time()],
            )
            connection.execute(
                f"CREATE TABLE {_table(key)} ("
                "identity bigint PRIMARY KEY REFERENCES oneshot.identity ON DELETE CASCADE,"
                f" images integer NOT NULL, vector vector({facts.dimensions}) NOT NULL)"
            )
            # In the row and not beside it: one page less to read for each vector.
            connection.execute(f"ALTER TABLE {_table(key)} ALTER vector SET STORAGE PLAIN")
            return GalleryModel(key, facts, "building", None)

    def activate(
        self, model: GalleryModel, *, instead_of: GalleryModel | None, impostors: Impostors | None
    ) -> bool:
        # Building the index row by row while a gallery is embedded would take many times longer.
        with self._layout() as connection:
            connection.execute(
                f"CREATE INDEX IF NOT EXISTS vector_{int(model.key)}_hnsw ON {_table(model.key)}"
                f" USING hnsw (vector vector_l1_ops) WITH ({HNSW})"
            )
        with self._layout() as connection:
            # Waits for enrolments under way, which share this row, and keeps new ones waiting.
            active = connection.execute(
                "SELECT id FROM oneshot.model WHERE state = 'active' FOR UPDATE"
            ).fetchone()
            if active != (None if instead_of is None else (instead_of.key,)):
                return False
            if connection.execute(_incomplete("1", model), [0, 1]).fetchone() is not None:
                return False
            connection.execute("UPDATE oneshot.model SET state = 'retired' WHERE state = 'active'")
            updated = connection.execute(
                "UPDATE oneshot.model SET state = 'active', impostors = %s"
                " WHERE id = %s AND state = 'building'",
                [_json(impostors), model.key],
            )
            if not updated.rowcount:
                raise ModelChanged
            return True

    def drop_retired(self) -> None:
        with self._layout() as connection:
            retired = connection.execute("SELECT id FROM oneshot.model WHERE state = 'retired'")
            for (key,) in retired.fetchall():
                connection.execute(f"DROP TABLE {_table(key)}")
                connection.execute("DELETE FROM oneshot.model WHERE id = %s", [key])

    def set_impostors(self, model: GalleryModel, impostors: Impostors | None) -> None:
        with self._connection() as connection:
            connection.execute(
                "UPDATE oneshot.model SET impostors = %s WHERE id = %s",
                [_json(impostors), model.key],
            )

    def add(self, people: Sequence[tuple[str, Sequence[NewImage]]], *, model: GalleryModel) -> int:
        now = time.time()
        added = 0
        with self._connection() as connection, connection.transaction():
            active = connection.execute(
                "SELECT id FROM oneshot.model WHERE state = 'active' FOR SHARE"
            ).fetchone()
            if active != (model.key,):
                raise ModelChanged
            # In one order everywhere, so that two who add the same names do not lock each other.
            for name, images in sorted(people, key=lambda person: person[0]):
                identity = _value(
                    connection,
                    "INSERT INTO oneshot.identity (name, created) VALUES (%s, %s)"
                    # An update, if of nothing, keeps the row from being removed meanwhile.
                    " ON CONFLICT (name) DO UPDATE SET name = EXCLUDED.name RETURNING id",
                    [name, now],
                )
                new = _add_images(connection, identity, images, now)
                if new:
                    _fold(connection, model, identity, new)
                added += len(new)
        return added

    def remove(self, name: str) -> int:
        with self._connection() as connection, connection.transaction():
            identity = connection.execute(
                "SELECT id FROM oneshot.identity WHERE name = %s FOR UPDATE", [name]
            ).fetchone()
            if identity is None:
                return 0
            images = connection.execute("DELETE FROM oneshot.image WHERE identity = %s", identity)
            connection.execute("DELETE FROM oneshot.identity WHERE id = %s", identity)
            return images.rowcount

    def erase(self, *, thorough: bool) -> bool:
        """Writes all tables anew; deleted rows stay in PostgreSQL's files until then."""
        if not thorough:
            return False
        with self._connection() as connection:
            keys = connection.execute("SELECT id FROM oneshot.model").fetchall()
            tables = ["oneshot.identity", "oneshot.image", "oneshot.cohort"]
            for table in [*tables, *(_table(key) for (key,) in keys)]:
                connection.execute(f"VACUUM (FULL) {table}")
            connection.execute("CHECKPOINT")
        return True

    def nearest(self, query: Vectors, count: int, *, model: GalleryModel) -> list[Hit]:
        with self._connection() as connection:
            found = connection.execute(
                "SELECT name, near.distance FROM"
                f" (SELECT identity, vector <+> %(query)s AS distance FROM {_table(model.key)}"
                " ORDER BY vector <+> %(query)s LIMIT %(count)s) AS near"
                " JOIN oneshot.identity ON identity.id = near.identity"
                " ORDER BY near.distance, near.identity",
                {"query": query, "count": count},
                prepare=True,
            ).fetchall()
        return [Hit(*row) for row in found]

    def mean_of(self, name: str, *, model: GalleryModel) -> Vectors | None:
        with self._connection() as connection:
            vector = _value(
                connection,
                f"SELECT vector FROM {_table(model.key)} WHERE identity ="
                " (SELECT id FROM oneshot.identity WHERE name = %s)",
                [name],
            )
        return None if vector is None else _vector(vector)

    def sample(self, people: int, *, model: GalleryModel) -> Vectors:
        with self._connection() as connection:
            found = connection.execute(
                # Scattered, for those who enrolled one after the other may be of one kind.
                f"SELECT vector FROM {_table(model.key)} ORDER BY hashint8(identity), identity"
                " LIMIT %s",
                [people],
            ).fetchall()
        vectors = [_vector(row[0]) for row in found]
        return np.array(vectors, np.float32).reshape(-1, model.facts.dimensions)

    def missing(self, model: GalleryModel, *, after: int, limit: int) -> list[Person]:
        images = "ARRAY(SELECT content FROM oneshot.image WHERE identity = i.id ORDER BY id)"
        with self._connection() as connection:
            found = connection.execute(
                _incomplete(f"i.id, i.name, {images}", model), [after, limit]
            ).fetchall()
        return [Person(key, name, tuple(contents)) for key, name, contents in found]

    def put_templates(self, model: GalleryModel, templates: Sequence[Template]) -> None:
        with self._connection() as connection, connection.transaction():
            for template in sorted(templates, key=lambda template: template.key):
                # The lock keeps enrolments and removals of this person waiting.
                there = connection.execute(
                    "SELECT FROM oneshot.identity WHERE id = %s FOR UPDATE", [template.key]
                ).fetchone()
                count = "SELECT count(*) FROM oneshot.image WHERE identity = %s"
                if there is not None and (
                    _value(connection, count, [template.key]) == template.images
                ):
                    _put(connection, model, template)

    def counts(self) -> Counts:
        with self._connection() as connection:
            names = _value(connection, "SELECT count(*) FROM oneshot.identity", [])
            return Counts(names, _value(connection, "SELECT count(*) FROM oneshot.image", []))

    def names(self) -> int:
        """Exact for small galleries, else what PostgreSQL found at its last look (ANALYZE)."""
        counted, at = self._names
        if time.monotonic() < at + COUNT_SECONDS * (counted >= EXACT_COUNT):
            return counted
        with self._connection() as connection:
            names: int = _value(
                connection,
                "SELECT reltuples::bigint FROM pg_class WHERE oid = 'oneshot.identity'::regclass",
                [],
            )
            if names < EXACT_COUNT:
                names = _value(connection, "SELECT count(*) FROM oneshot.identity", [])
        self._names = names, time.monotonic()
        return names

    def identities(self, *, after: str, limit: int) -> list[Identity]:
        return self._identities("name > %s ORDER BY name LIMIT %s", [after, limit])

    def identity(self, name: str) -> Identity | None:
        found = self._identities("name = %s", [name])
        return found[0] if found else None

    def cohort(self) -> list[CohortImage]:
        with self._connection() as connection:
            found = connection.execute("SELECT person, content FROM oneshot.cohort ORDER BY id")
            return [CohortImage(*row) for row in found.fetchall()]

    def set_cohort(self, images: Sequence[CohortImage]) -> None:
        with self._connection() as connection, connection.transaction():
            connection.execute("DELETE FROM oneshot.cohort")
            connection.cursor().executemany(
                "INSERT INTO oneshot.cohort (person, content) VALUES (%s, %s)", images
            )

    def close(self) -> None:
        self._pool.close()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with database_errors(), self._pool.connection() as connection:
            yield connection

    @contextmanager
    def _layout(self) -> Iterator[Connection]:
        """A transaction that no other process's change of models gets in between."""
        with self._connection() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [LAYOUT_LOCK])
            yield connection

    def _identities(self, condition: str, values: list[Any]) -> list[Identity]:
        with self._connection() as connection:
            found = connection.execute(
                "SELECT name, created,"
                " (SELECT coalesce(max(created), i.created) FROM oneshot.image"
                "  WHERE identity = i.id),"
                " ARRAY(SELECT encode(sha256, 'hex') FROM oneshot.image"
                "  WHERE identity = i.id ORDER BY id)"
                f" FROM oneshot.identity AS i WHERE {condition}",
                values,
            ).fetchall()
        return [Identity(name, created, at, tuple(images)) for name, created, at, images in found]


def _incomplete(columns: str, model: GalleryModel) -> str:
    """Query of people after a key, up to a limit, whose images are not all in their vector."""
    return (
        f"SELECT {columns} FROM oneshot.identity AS i"
        f" LEFT JOIN {_table(model.key)} AS v ON v.identity = i.id"
        " WHERE i.id > %s AND coalesce(v.images, 0) <>"
        " (SELECT count(*) FROM oneshot.image WHERE identity = i.id) ORDER BY i.id LIMIT %s"
    )


def _add_images(
    connection: Connection, identity: int, images: Sequence[NewImage], now: float
) -> list[Vectors]:
    """Stores what is not there yet, and gives the vectors of that."""
    new = []
    for image in images:
        key = _value(
            connection,
            "INSERT INTO oneshot.image (identity, sha256, created, content)"
            " VALUES (%s, %s, %s, %s) ON CONFLICT (sha256) DO NOTHING RETURNING id",
            [identity, image.sha256, now, image.content],
        )
        if key is not None:
            new.append(image.vector)
            continue
        owner = connection.execute(
            "SELECT identity, name FROM oneshot.image JOIN oneshot.identity"
            " ON identity.id = image.identity WHERE sha256 = %s",
            [image.sha256],
        ).fetchone()
        if owner is None:  # removed in this very moment: again
            raise ModelChanged
        if owner[0] != identity:
            raise ImageTaken(image.sha256.hex(), owner[1])
    return new


def _fold(
    connection: Connection, model: GalleryModel, identity: int, vectors: Sequence[Vectors]
) -> None:
    """Takes more vectors into the mean of someone whose row is locked."""
    before = connection.execute(
        f"SELECT images, vector FROM {_table(model.key)} WHERE identity = %s", [identity]
    ).fetchone()
    count, mean = (0, None) if before is None else (before[0], _vector(before[1]))
    template = Template(identity, count + len(vectors), mean_with(mean, count, vectors))
    _put(connection, model, template)


def _put(connection: Connection, model: GalleryModel, template: Template) -> None:
    connection.execute(
        f"INSERT INTO {_table(model.key)} (identity, images, vector) VALUES (%s, %s, %s)"
        " ON CONFLICT (identity) DO UPDATE"
        " SET images = EXCLUDED.images, vector = EXCLUDED.vector",
        [template.key, template.images, template.mean],
    )


def _value(connection: Connection, sql: str, values: Sequence[Any]) -> Any:
    row = connection.execute(sql, values).fetchone()
    return None if row is None else row[0]


def _table(key: int) -> str:
    """The table of a model's vectors; the key is a number, so the name is safe in SQL."""
    return f"oneshot.vector_{int(key)}"


def _model(row: Any) -> GalleryModel:
    key, version, bias, probe, state, impostors = row
    return GalleryModel(
        key,
        ModelFacts(version, bias, np.frombuffer(probe, np.float32)),
        state,
        None if impostors is None else Impostors.from_json(impostors),
    )


def _json(impostors: Impostors | None) -> str | None:
    return None if impostors is None else impostors.to_json()


def _vector(stored: Any) -> Vectors:
    return np.asarray(stored.to_numpy(), np.float32)
