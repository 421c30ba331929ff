"""Opening the database file of a gallery."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import apsw
import sqlite_vec  # type: ignore[import-untyped]

from serving.errors import Code, ServingError
from serving.gallery.store import Session

APPLICATION_ID: Final = 0x0551A9E5
"""Marks the file as a gallery, for SQLite's `application_id`."""
SCHEMA_VERSION: Final = 1
BUSY_MILLISECONDS: Final = 30_000

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
_TABLES: Final = "SELECT count(*) FROM sqlite_schema"


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


def connect(path: Path) -> SqliteSession:
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
def database_errors(path: Path) -> Iterator[None]:
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
