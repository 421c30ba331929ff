"""A gallery in one SQLite file, searched by sqlite-vec or in memory."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw
import numpy as np

from serving.gallery.records import Counts, GalleryModel, ModelChanged, Template, Vectors
from serving.gallery.sqlite.connection import (
    BUSY_MILLISECONDS,
    SqliteSession,
    connect,
    database_errors,
)
from serving.gallery.sqlite.mirror import FollowingMirror
from serving.gallery.store import Session, Store, vector_table

ERASE_MILLISECONDS: Final = 5_000
"""How long a checkpoint waits for queries of other processes to end."""
_CHANGED: Final = "INSERT INTO change (identity) VALUES (?)"


class SqliteStore(Store):
    """One file for one site; several processes may use it at once.

    One connection writes, another reads, so that queries do not wait for a flush to the disk.
    A transaction that writes keeps all others that do waiting, so rows need no locks.
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

    def remove(self, name: str) -> int:
        images = super().remove(name)
        with self._read() as reader:
            # Cleared from memory too, without waiting for the next query.
            if images and self._mirror is not None:
                try:
                    self._check_there(reader, self._mirror.model)
                    self._mirror.follow(reader)
                except ModelChanged:
                    self._mirror = None
        return images

    def erase(self, *, thorough: bool) -> bool:
        """Empties the write-ahead log; the file itself holds zeros in place of deleted content."""
        with self._writing, database_errors(self._path):
            connection = self._writer.connection
            connection.set_busy_timeout(BUSY_MILLISECONDS if thorough else ERASE_MILLISECONDS)
            try:
                return not self._writer.value("PRAGMA wal_checkpoint(TRUNCATE)")
            except apsw.BusyError:
                return False
            finally:
                connection.set_busy_timeout(BUSY_MILLISECONDS)

    def nearest(
        self, query: Vectors, count: int, *, model: GalleryModel
    ) -> list[tuple[str, float]]:
        with self._read() as reader:
            # Never another model's vectors, even if it became active since the query was embedded.
            self._check_there(reader, model)
            if self._in_memory:
                if self._mirror is None or self._mirror.model.key != model.key:
                    self._mirror = FollowingMirror(reader, model)
                self._mirror.follow(reader)
                near = self._mirror.nearest(query, count)
            else:
                near = reader.rows(
                    f"SELECT rowid, distance FROM {vector_table(model.key)}"
                    " WHERE vector MATCH ? AND k = ? ORDER BY distance",
                    [query.tobytes(), count],
                )
            name_of = "SELECT name FROM identity WHERE id = ?"
            return [(reader.value(name_of, [key]), distance) for key, distance in near]

    def counts(self) -> Counts:
        with self._read() as reader:
            return Counts(*reader.rows("SELECT names, images FROM total")[0])

    def close(self) -> None:
        with self._writing, self._reading:
            self._reader.connection.close()
            self._writer.connection.close()

    @contextmanager
    def _write(self) -> Iterator[SqliteSession]:
        with self._writing, database_errors(self._path), self._writer.transaction("IMMEDIATE"):
            yield self._writer

    @contextmanager
    def _read(self) -> Iterator[SqliteSession]:
        with self._reading, database_errors(self._path), self._reader.transaction("DEFERRED"):
            yield self._reader

    def _check_there(self, session: Session, model: GalleryModel) -> None:
        # The vectors of a retired model are about to be dropped.
        state = session.value("SELECT state FROM model WHERE id = ?", [model.key])
        if state in (None, "retired"):
            raise ModelChanged

    def _create_vectors(self, session: Session, key: int, *, dimensions: int) -> None:
        session.rows(
            f"CREATE VIRTUAL TABLE {vector_table(key)} USING vec0("
            f"vector float[{int(dimensions)}] distance_metric=L1)"
        )

    def _stored(self, model: GalleryModel) -> str:
        vector = f"(SELECT vector FROM {vector_table(model.key)} WHERE rowid = identity)"
        return (
            f"(SELECT identity, images, {vector} AS vector FROM embedded"
            f" WHERE model = {int(model.key)})"
        )

    def _array(self, stored: Any) -> Vectors:
        return np.frombuffer(stored, np.float32)

    def _put(self, session: Session, model: GalleryModel, template: Template) -> None:
        table = vector_table(model.key)
        session.rows(f"DELETE FROM {table} WHERE rowid = ?", [template.key])
        session.rows(
            f"INSERT INTO {table} (rowid, vector) VALUES (?, ?)",
            [template.key, template.mean.tobytes()],
        )
        session.rows(
            "INSERT INTO embedded (model, identity, images) VALUES (?, ?, ?)"
            " ON CONFLICT (model, identity) DO UPDATE SET images = excluded.images",
            [model.key, template.key, template.images],
        )

    def _fold(
        self, session: Session, model: GalleryModel, identity: int, vectors: Sequence[Vectors]
    ) -> None:
        super()._fold(session, model, identity, vectors)
        session.rows(_CHANGED, [identity])

    def _forget(self, session: Session, identity: int) -> None:
        for (key,) in session.rows("SELECT id FROM model"):
            session.rows(f"DELETE FROM {vector_table(key)} WHERE rowid = ?", [identity])
        session.rows(_CHANGED, [identity])
