"""A gallery in one SQLite file, searched by sqlite-vec or in memory."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw

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
from serving.gallery.sqlite import vectors
from serving.gallery.sqlite.connection import (
    BUSY_MILLISECONDS,
    connect,
    database_errors,
    rows,
    snapshot,
    transaction,
    value,
)
from serving.gallery.sqlite.vectors import FollowingMirror, Mirror
from serving.gallery.threshold import Impostors

ERASE_MILLISECONDS: Final = 5_000
"""How long a checkpoint waits for queries of other processes to end."""

_MODEL: Final = f"SELECT {MODEL_COLUMNS} FROM model"


class SqliteStore:
    """One file for one site; several processes may use it at once.

    One connection writes, another reads, so that queries do not wait for a flush to the disk.
    """

    def __init__(self, path: Path, *, in_memory: bool = True) -> None:
        """Opens the file, and makes it if it is not there.

        Args:
          path: of the file; `-wal` and `-shm` files lie beside it while it is open.
          in_memory: keep a copy of the vectors in memory and search that (D x 4 bytes a vector,
            several times faster; for servers). Else sqlite-vec searches the file, which spares
            reading it for a few queries. Both are exact.
        """
        self._path = path
        with database_errors(path):
            self._writer = connect(path)
            self._reader = connect(path)
        self._writing = threading.Lock()
        self._reading = threading.RLock()
        self._in_memory = in_memory
        self._mirror: FollowingMirror | None = None

    def active(self) -> GalleryModel | None:
        with self._read() as reader:
            found = rows(reader, f"{_MODEL} WHERE state = 'active'")
        return GalleryModel.from_row(found[0]) if found else None

    def begin(self, facts: ModelFacts) -> GalleryModel:
        with self._write() as writer:
            known = rows(
                writer, f"{_MODEL} WHERE version = ? AND state != 'retired'", [facts.version]
            )
            if known:
                return GalleryModel.from_row(known[0])
            # What another rebuild began for yet another version is of no use any more.
            writer.execute("UPDATE model SET state = 'retired' WHERE state = 'building'")
            writer.execute(
                "INSERT INTO model (version, bias, probe, state, created)"
                " VALUES (?, ?, ?, 'building', ?)",
                (facts.version, facts.bias, facts.probe.tobytes(), time.time()),
            )
            key = writer.last_insert_rowid()
            vectors.create(writer, key, dimensions=facts.dimensions)
            return GalleryModel(key, facts, "building", None)

    def activate(
        self, model: GalleryModel, *, instead_of: GalleryModel | None, impostors: Impostors | None
    ) -> bool:
        with self._write() as writer:
            active = value(writer, "SELECT id FROM model WHERE state = 'active'")
            if active != (None if instead_of is None else instead_of.key):
                return False
            vectors.check_there(writer, model)
            if vectors.incomplete(writer, model):
                return False
            writer.execute("UPDATE model SET state = 'retired' WHERE state = 'active'")
            writer.execute(
                "UPDATE model SET state = 'active', impostors = ? WHERE id = ?",
                (json_or_null(impostors), model.key),
            )
            return True

    def drop_retired(self) -> None:
        with self._write() as writer:
            for (key,) in rows(writer, "SELECT id FROM model WHERE state = 'retired'"):
                vectors.drop(writer, key)
                writer.execute("DELETE FROM model WHERE id = ?", (key,))

    def set_impostors(self, model: GalleryModel, impostors: Impostors | None) -> None:
        with self._write() as writer:
            writer.execute(
                "UPDATE model SET impostors = ? WHERE id = ?", (json_or_null(impostors), model.key)
            )

    def add(self, people: Sequence[tuple[str, Sequence[NewImage]]], *, model: GalleryModel) -> int:
        now = time.time()
        added = 0
        with self._write() as writer:
            if value(writer, "SELECT id FROM model WHERE state = 'active'") != model.key:
                raise ModelChanged
            for name, images in people:
                writer.execute(
                    "INSERT INTO identity (name, created) VALUES (?, ?) ON CONFLICT DO NOTHING",
                    (name, now),
                )
                identity = value(writer, "SELECT id FROM identity WHERE name = ?", [name])
                new = _add_images(writer, identity, images, now)
                if new:
                    vectors.fold(writer, model, identity, new)
                    writer.execute("INSERT INTO change (identity) VALUES (?)", (identity,))
                added += len(new)
        return added

    def remove(self, name: str) -> int:
        with self._write() as writer:
            identity = value(writer, "SELECT id FROM identity WHERE name = ?", [name])
            if identity is None:
                return 0
            images: int = value(writer, "SELECT count(*) FROM image WHERE identity = ?", [identity])
            for (key,) in rows(writer, "SELECT id FROM model"):
                vectors.delete(writer, key, identity)
            writer.execute("DELETE FROM identity WHERE id = ?", (identity,))
            writer.execute("INSERT INTO change (identity) VALUES (?)", (identity,))
        self._forget_removed()
        return images

    def erase(self, *, thorough: bool) -> bool:
        """Empties the write-ahead log; the file itself holds zeros in place of deleted content."""
        with self._writing, database_errors(self._path):
            self._writer.set_busy_timeout(BUSY_MILLISECONDS if thorough else ERASE_MILLISECONDS)
            try:
                return not rows(self._writer, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0]
            except apsw.BusyError:
                return False
            finally:
                self._writer.set_busy_timeout(BUSY_MILLISECONDS)

    def nearest(self, query: Vectors, count: int, *, model: GalleryModel) -> list[Hit]:
        with self._read() as reader:
            # Never another model's vectors, even if it became active since the query was embedded.
            vectors.check_there(reader, model)
            if self._in_memory:
                keys, distances = self._followed(reader, model).nearest(query, count)
                near = list(zip(keys.tolist(), distances.tolist(), strict=True))
            else:
                near = vectors.nearest(reader, model, query, count)
            name_of = "SELECT name FROM identity WHERE id = ?"
            return [Hit(value(reader, name_of, [key]), distance) for key, distance in near]

    def mean_of(self, name: str, *, model: GalleryModel) -> Vectors | None:
        with self._read() as reader:
            vectors.check_there(reader, model)
            return vectors.mean_of(reader, model, name)

    def sample(self, people: int, *, model: GalleryModel) -> Vectors:
        with self._read() as reader:
            vectors.check_there(reader, model)
            return vectors.sample(reader, model, people)

    def missing(self, model: GalleryModel, *, after: int, limit: int) -> list[Person]:
        with self._read() as reader:
            people = vectors.incomplete(reader, model, after=after, limit=limit)
            images = "SELECT content FROM image WHERE identity = ? ORDER BY id"
            return [
                Person(key, name, tuple(row[0] for row in rows(reader, images, [key])))
                for key, name in people
            ]

    def put_templates(self, model: GalleryModel, templates: Sequence[Template]) -> None:
        with self._write() as writer:
            vectors.check_there(writer, model)
            for template in templates:
                there = "SELECT count(*) FROM image WHERE identity = ?"
                if value(writer, there, [template.key]) == template.images:
                    vectors.put(writer, model, template)

    def counts(self) -> Counts:
        with self._read() as reader:
            return Counts(*rows(reader, "SELECT names, images FROM total")[0])

    def names(self) -> int:
        return self.counts().names

    def identities(self, *, after: str, limit: int) -> list[Identity]:
        with self._read() as reader:
            found = rows(
                reader,
                "SELECT id, name, created FROM identity WHERE name > ? ORDER BY name LIMIT ?",
                [after, limit],
            )
            return [_identity(reader, row) for row in found]

    def identity(self, name: str) -> Identity | None:
        with self._read() as reader:
            found = rows(reader, "SELECT id, name, created FROM identity WHERE name = ?", [name])
            return _identity(reader, found[0]) if found else None

    def cohort(self) -> list[CohortImage]:
        with self._read() as reader:
            found = rows(reader, "SELECT person, content FROM cohort ORDER BY id")
        return [CohortImage(*row) for row in found]

    def set_cohort(self, images: Sequence[CohortImage]) -> None:
        with self._write() as writer:
            writer.execute("DELETE FROM cohort")
            writer.executemany("INSERT INTO cohort (person, content) VALUES (?, ?)", images)

    def close(self) -> None:
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def _write(self) -> Iterator[apsw.Connection]:
        with self._writing, database_errors(self._path), transaction(self._writer):
            yield self._writer

    @contextmanager
    def _read(self) -> Iterator[apsw.Connection]:
        with self._reading, database_errors(self._path), snapshot(self._reader):
            yield self._reader

    def _forget_removed(self) -> None:
        """Clears removed vectors from memory too, without waiting for the next query."""
        with self._read() as reader:
            if self._mirror is None:
                return
            if vectors.still_there(reader, self._mirror.model):
                self._mirror.follow(reader)
            else:
                self._mirror = None

    def _followed(self, reader: apsw.Connection, model: GalleryModel) -> Mirror:
        """The vectors of `model` as in the snapshot."""
        if self._mirror is None or self._mirror.model.key != model.key:
            self._mirror = FollowingMirror(reader, model)
        self._mirror.follow(reader)
        return self._mirror.mirror


def _add_images(
    writer: apsw.Connection, identity: int, images: Sequence[NewImage], now: float
) -> list[Vectors]:
    """Stores what is not there yet, and gives the vectors of that."""
    new = []
    for image in images:
        owner = rows(
            writer,
            "SELECT identity, name FROM image JOIN identity ON identity.id = identity"
            " WHERE sha256 = ?",
            [image.sha256],
        )
        if not owner:
            writer.execute(
                "INSERT INTO image (identity, sha256, created, content) VALUES (?, ?, ?, ?)",
                (identity, image.sha256, now, image.content),
            )
            new.append(image.vector)
        elif owner[0][0] != identity:
            raise ImageTaken(image.sha256.hex(), owner[0][1])
    return new


def _identity(reader: apsw.Connection, row: Any) -> Identity:
    key, name, created = row
    images = rows(reader, "SELECT sha256, created FROM image WHERE identity = ? ORDER BY id", [key])
    updated = max((image[1] for image in images), default=created)
    return Identity(name, created, updated, tuple(image[0].hex() for image in images))
