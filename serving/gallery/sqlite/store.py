"""A gallery in one SQLite file, searched by sqlite-vec or in memory."""

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import apsw
import numpy as np
import sqlite_vec  # type: ignore[import-untyped]

from serving.errors import Code, ServingError
from serving.gallery.records import Counts, GalleryModel, ModelChanged, Template, Vectors
from serving.gallery.sqlite.mirror import Mirror
from serving.gallery.store import Session, Store, vector_table

APPLICATION_ID: Final = 0x0551A9E5
"""Marks the file as a gallery, for SQLite's `application_id`."""
SCHEMA_VERSION: Final = 1
BUSY_MILLISECONDS: Final = 30_000
ERASE_MILLISECONDS: Final = 5_000
"""How long a checkpoint waits for queries of other processes to end."""
CHUNK: Final = 4096
"""Vectors read at a time."""

SCHEMA: Final = """
CREATE TABLE identity (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  created REAL NOT NULL
) STRICT;
CREATE TABLE image (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  identity INTEGER NOT NULL REFERENCES identity ON DELETE CASCADE,
  sha256 BLOB NOT NULL UNIQUE,
  created REAL NOT NULL,
  content BLOB NOT NULL
) STRICT;
CREATE INDEX image_identity ON image (identity);
-- Whose vector was added, changed or deleted, for processes that hold vectors in memory.
CREATE TABLE change (id INTEGER PRIMARY KEY AUTOINCREMENT, identity INTEGER NOT NULL) STRICT;
CREATE TABLE model (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  version TEXT NOT NULL,
  bias REAL NOT NULL,
  probe BLOB NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('building', 'active', 'retired')),
  impostors TEXT,
  created REAL NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_active_model ON model (state) WHERE state = 'active';
-- How many images of an identity are in its vector of a model.
CREATE TABLE embedded (
  model INTEGER NOT NULL REFERENCES model ON DELETE CASCADE,
  identity INTEGER NOT NULL REFERENCES identity ON DELETE CASCADE,
  images INTEGER NOT NULL,
  PRIMARY KEY (model, identity)
) STRICT, WITHOUT ROWID;
CREATE INDEX embedded_identity ON embedded (identity);
CREATE TABLE cohort (id INTEGER PRIMARY KEY, person TEXT NOT NULL, content BLOB NOT NULL) STRICT;
-- Every query needs these, and counting a million rows takes longer than finding one.
CREATE TABLE total (names INTEGER NOT NULL, images INTEGER NOT NULL) STRICT;
INSERT INTO total VALUES (0, 0);
CREATE TRIGGER identity_added AFTER INSERT ON identity
  BEGIN UPDATE total SET names = names + 1; END;
CREATE TRIGGER identity_removed AFTER DELETE ON identity
  BEGIN UPDATE total SET names = names - 1; END;
CREATE TRIGGER image_added AFTER INSERT ON image
  BEGIN UPDATE total SET images = images + 1; END;
CREATE TRIGGER image_removed AFTER DELETE ON image
  BEGIN UPDATE total SET images = images - 1; END;
"""
"""Each model's vectors are in a virtual table of their own, `vector_<model id>`, by identity."""
SETTINGS: Final = """
CREATE TABLE IF NOT EXISTS setting (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT
"""
"""Earlier releases made no such table."""
_TABLES: Final = "SELECT count(*) FROM sqlite_schema"
_LAST_CHANGE: Final = "SELECT coalesce(max(id), 0) FROM change"
_CHANGED: Final = "INSERT INTO change (identity) VALUES (?)"


class SqliteSession(Session):
    """A connection; SQLite has no schemas, so `oneshot.` is left out."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection

    def run(self, sql: str, values: Sequence[Any] = ()) -> apsw.Cursor:
        """Runs a statement whose rows are too many to be had at once."""
        return self.connection.execute(sql.replace("oneshot.", ""), tuple(values))

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self.run(sql, values).fetchall()

    @contextmanager
    def transaction(self, kind: Literal["IMMEDIATE", "DEFERRED"]) -> Iterator[None]:
        """All or nothing, with the right to write from the beginning, or reads of one state.

        apsw's own hides the error (a full disk) after which SQLite has rolled back by itself.
        """
        self.rows(f"BEGIN {kind}")
        try:
            yield
            self.rows("COMMIT")
        except BaseException:
            if not self.connection.get_autocommit():
                self.rows("ROLLBACK")
            raise


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
        with _database_errors(path):
            self._writer = _connect(path)
            self._reader = _connect(path)
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
        with self._writing, _database_errors(self._path):
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
        with self._writing, _database_errors(self._path), self._writer.transaction("IMMEDIATE"):
            yield self._writer

    @contextmanager
    def _read(self) -> Iterator[SqliteSession]:
        with self._reading, _database_errors(self._path), self._reader.transaction("DEFERRED"):
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


class FollowingMirror(Mirror):
    """A mirror of a model's vectors that catches up with what any process has committed."""

    def __init__(self, reader: SqliteSession, model: GalleryModel) -> None:
        """Reads all vectors; inside a snapshot."""
        super().__init__(model.facts.dimensions)
        self.model = model
        self._table = vector_table(model.key)
        self._data_version: int | None = None
        self._seen: int = reader.value(_LAST_CHANGE)
        self.reserve(reader.value("SELECT names FROM total"))
        source = reader.run(f"SELECT rowid, vector FROM {self._table}")
        while chunk := list(itertools.islice(source, CHUNK)):
            self._add_rows(chunk)

    def follow(self, reader: SqliteSession) -> None:
        """Catches up; inside a snapshot."""
        # Changes whenever another connection has committed: the store writes through another.
        data_version = reader.value("PRAGMA data_version")
        if data_version == self._data_version:
            return
        changed = reader.rows("SELECT DISTINCT identity FROM change WHERE id > ?", [self._seen])
        for (identity,) in changed:
            self.discard(identity)
            self._add_rows(
                reader.rows(f"SELECT rowid, vector FROM {self._table} WHERE rowid = ?", [identity])
            )
        self._seen = reader.value(_LAST_CHANGE)
        self._data_version = data_version

    def _add_rows(self, rows: Sequence[Any]) -> None:
        matrix = np.frombuffer(b"".join(vector for _, vector in rows), np.float32)
        self.add([key for key, _ in rows], matrix.reshape(len(rows), self.model.facts.dimensions))


def _connect(path: Path) -> SqliteSession:
    """Opens the file, and makes it, for its owner alone, if it is not there.

    Commits are flushed to the disk before they return, deleted content is overwritten with zeros.
    SQLite's own Python module is not used: on many systems it cannot load extensions.

    Raises:
      ServingError: FAILED_PRECONDITION: the file is something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    # Absolute, so that no name means anything else to SQLite, as ":memory:" does.
    connection = apsw.Connection(str(path.absolute()))
    session = SqliteSession(connection)
    try:
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        connection.enable_load_extension(True)
        connection.load_extension(sqlite_vec.loadable_path())
        connection.enable_load_extension(False)
        # SQLite's own knows the letters of English alone.
        connection.create_scalar_function("lower", lambda *name: str(*name).lower(), 1)
        # First: what is somebody else's stays as it is, its journal too.
        _check(session, path)
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "secure_delete = ON",
            "foreign_keys = ON",
        ):
            session.rows(f"PRAGMA {pragma}")
        with session.transaction("IMMEDIATE"):
            if not session.value(_TABLES):
                session.rows(SCHEMA)
                session.rows(f"PRAGMA application_id = {APPLICATION_ID}")
                session.rows(f"PRAGMA user_version = {SCHEMA_VERSION}")
            session.rows(SETTINGS)
    except apsw.NotADBError as error:
        connection.close()
        raise ServingError(Code.FAILED_PRECONDITION, f"{path} is no gallery database") from error
    except BaseException:
        connection.close()
        raise
    return session


def _check(session: SqliteSession, path: Path) -> None:
    """Raises ServingError (FAILED_PRECONDITION) unless it is a gallery of ours, or empty."""
    with session.transaction("DEFERRED"):
        application = session.value("PRAGMA application_id")
        version = session.value("PRAGMA user_version")
        empty = application == 0 and not session.value(_TABLES)
    if empty:
        return
    if application != APPLICATION_ID:
        raise ServingError(
            Code.FAILED_PRECONDITION, f"{path} is a database of something else than a gallery"
        )
    if version != SCHEMA_VERSION:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"{path} has the layout of version {version}, and this program knows {SCHEMA_VERSION}",
        )


@contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    """SQLite's errors that the user can do something about, as such."""
    try:
        yield
    except apsw.BusyError as error:
        raise ServingError(
            Code.UNAVAILABLE, f"{path} is locked by another process for too long"
        ) from error
    except apsw.FullError as error:
        raise OSError(f"{path}: the disk is full, nothing was stored") from error
    except (apsw.ReadOnlyError, apsw.CantOpenError) as error:
        raise OSError(f"{path}: {error}") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise ServingError(Code.DATA_LOSS, f"{path} is damaged: {error}") from error
