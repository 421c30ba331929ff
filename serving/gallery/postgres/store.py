"""A gallery in PostgreSQL with pgvector, for many users and machines."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from serving.gallery.postgres import vectors
from serving.gallery.postgres.connection import (
    LAYOUT_LOCK,
    Connection,
    database_errors,
    open_pool,
    value,
)
from serving.gallery.records import (
    MODEL_COLUMNS,
    CohortImage,
    Counts,
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
    json_or_null,
)
from serving.gallery.threshold import Impostors

EXACT_COUNT: Final = 1_000
"""Thresholds hardly depend on whether larger galleries are counted exactly, or now."""
COUNT_SECONDS: Final = 10.0

_MODEL: Final = f"SELECT {MODEL_COLUMNS} FROM oneshot.model"
_log = logging.getLogger(__name__)


class PostgresStore:
    """Found by an HNSW index for Manhattan distance, which misses the nearest once in a while."""

    def __init__(self, url: str) -> None:
        """Connects to `postgresql://user:password@host/database`, and makes the tables."""
        self._pool = open_pool(url)
        self._names = 0, 0.0

    def active(self) -> GalleryModel | None:
        with self._connection() as connection:
            row = connection.execute(f"{_MODEL} WHERE state = 'active'").fetchone()
        return None if row is None else GalleryModel.from_row(row)

    def begin(self, facts: ModelFacts) -> GalleryModel:
        vectors.check_dimensions(facts.dimensions)
        with self._layout() as connection:
            known = connection.execute(
                f"{_MODEL} WHERE version = %s AND state <> 'retired'", [facts.version]
            ).fetchone()
            if known is not None:
                return GalleryModel.from_row(known)
            # What another rebuild began for yet another version is of no use any more.
            connection.execute(
                "UPDATE oneshot.model SET state = 'retired' WHERE state = 'building'"
            )
            key = value(
                connection,
                "INSERT INTO oneshot.model (version, bias, probe, state, created)"
                " VALUES (%s, %s, %s, 'building', %s) RETURNING id",
                [facts.version, facts.bias, facts.probe.tobytes(), time.time()],
            )
            vectors.create(connection, key, dimensions=facts.dimensions)
            return GalleryModel(key, facts, "building", None)

    def activate(
        self, model: GalleryModel, *, instead_of: GalleryModel | None, impostors: Impostors | None
    ) -> bool:
        # Building the index row by row while a gallery is embedded would take many times longer.
        with self._layout() as connection:
            vectors.build_index(connection, model)
        with self._layout() as connection:
            # Waits for enrolments under way, which share this row, and keeps new ones waiting.
            active = connection.execute(
                "SELECT id FROM oneshot.model WHERE state = 'active' FOR UPDATE"
            ).fetchone()
            if active != (None if instead_of is None else (instead_of.key,)):
                return False
            if connection.execute(vectors.incomplete("1", model), [0, 1]).fetchone() is not None:
                return False
            connection.execute("UPDATE oneshot.model SET state = 'retired' WHERE state = 'active'")
            updated = connection.execute(
                "UPDATE oneshot.model SET state = 'active', impostors = %s"
                " WHERE id = %s AND state = 'building'",
                [json_or_null(impostors), model.key],
            )
            if not updated.rowcount:
                raise ModelChanged
            return True

    def drop_retired(self) -> None:
        with self._layout() as connection:
            retired = connection.execute("SELECT id FROM oneshot.model WHERE state = 'retired'")
            for (key,) in retired.fetchall():
                vectors.drop(connection, key)
                connection.execute("DELETE FROM oneshot.model WHERE id = %s", [key])

    def set_impostors(self, model: GalleryModel, impostors: Impostors | None) -> None:
        with self._connection() as connection:
            connection.execute(
                "UPDATE oneshot.model SET impostors = %s WHERE id = %s",
                [json_or_null(impostors), model.key],
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
                identity = value(
                    connection,
                    "INSERT INTO oneshot.identity (name, created) VALUES (%s, %s)"
                    # An update, if of nothing, keeps the row from being removed meanwhile.
                    " ON CONFLICT (name) DO UPDATE SET name = EXCLUDED.name RETURNING id",
                    [name, now],
                )
                new = _add_images(connection, identity, images, now)
                if new:
                    vectors.fold(connection, model, identity, new)
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
            for table in [*tables, *(vectors.vector_table(key) for (key,) in keys)]:
                connection.execute(f"VACUUM (FULL) {table}")
            try:
                # What the log holds of them ends up in segments that are not needed any more.
                connection.execute("SELECT pg_switch_wal()")
                connection.execute("CHECKPOINT")
            except psycopg.errors.InsufficientPrivilege as error:
                _log.warning(
                    "the write-ahead log holds what was removed until PostgreSQL recycles it (%s)",
                    error,
                )
        return True

    def nearest(self, query: Vectors, count: int, *, model: GalleryModel) -> list[Hit]:
        with self._connection() as connection:
            return vectors.nearest(connection, model, query, count)

    def mean_of(self, name: str, *, model: GalleryModel) -> Vectors | None:
        with self._connection() as connection:
            return vectors.mean_of(connection, model, name)

    def sample(self, people: int, *, model: GalleryModel) -> Vectors:
        with self._connection() as connection:
            return vectors.sample(connection, model, people)

    def missing(self, model: GalleryModel, *, after: int, limit: int) -> list[Person]:
        images = "ARRAY(SELECT content FROM oneshot.image WHERE identity = i.id ORDER BY id)"
        with self._connection() as connection:
            found = connection.execute(
                vectors.incomplete(f"i.id, i.name, {images}", model), [after, limit]
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
                    value(connection, count, [template.key]) == template.images
                ):
                    vectors.put(connection, model, template)

    def counts(self) -> Counts:
        with self._connection() as connection:
            names = value(connection, "SELECT count(*) FROM oneshot.identity", [])
            return Counts(names, value(connection, "SELECT count(*) FROM oneshot.image", []))

    def names(self) -> int:
        """Exact for small galleries, else what PostgreSQL found at its last look (ANALYZE)."""
        counted, at = self._names
        if time.monotonic() < at + COUNT_SECONDS * (counted >= EXACT_COUNT):
            return counted
        with self._connection() as connection:
            names: int = value(
                connection,
                "SELECT reltuples::bigint FROM pg_class WHERE oid = 'oneshot.identity'::regclass",
                [],
            )
            if names < EXACT_COUNT:
                names = value(connection, "SELECT count(*) FROM oneshot.identity", [])
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


def _add_images(
    connection: Connection, identity: int, images: Sequence[NewImage], now: float
) -> list[Vectors]:
    """Stores what is not there yet, and gives the vectors of that."""
    new = []
    for image in images:
        key = value(
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
