"""Keeps the text of a lease: in a file of a shared folder, or a row of the metadata database."""

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Final

from data_ingest.durable import take_lock, write_atomically
from data_ingest.errors import InputError

WAIT_SECONDS: Final = 10.0
"""How long a store waits for others that read or write the lease at the same moment."""
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS oneshot_lease"
    " (name VARCHAR(64) NOT NULL PRIMARY KEY, content TEXT NOT NULL)"
)
_NAME: Final = "pipeline"
# What creates the table in PostgreSQL: two at once would clash in its catalogue.
_TABLE_LOCK: Final = 0x0551A9E6

Change = Callable[[str, float], str | None]
"""From the content ("" at first) and the store's time in seconds to the new content, or None.

Nobody writes in between, and None leaves the content as it is. The clock is that of the store, so
that hosts whose clocks differ agree. What a change raises is passed on, and nothing is written.
"""


class LeaseStoreError(RuntimeError):
    """The lease cannot be read or written just now."""


class FileLeaseStore:
    """A file in a folder that every host mounts; short locks (flock) serialise its changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = path.with_name(f"{path.name}.lock")

    def update(self, change: Change) -> None:
        """Raises LeaseStoreError where the folder does not answer, InputError without locks."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock.open("a") as lock:
                self._wait_for(lock)
                # The file server sets the time where none is given: one clock for all hosts.
                os.utime(self._lock)
                now = self._lock.stat().st_mtime
                text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
                changed = change(text, now)
                if changed is not None:
                    write_atomically(self._path, changed)
        except OSError as error:
            raise LeaseStoreError(f"{self._path}: {error}") from error

    def _wait_for(self, lock: IO[str]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                take_lock(lock, self._lock, wait=False)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LeaseStoreError(
                        f"{self._lock}: locked for {WAIT_SECONDS:.0f} s"
                    ) from None
                time.sleep(0.01)
            else:
                return


class DatabaseLeaseStore:
    """A row of the table `oneshot_lease` in PostgreSQL or MySQL.

    Both drivers speak DB-API 2.0 with the same parameters, so that the few statements that differ
    are all there is between them.
    """

    def __init__(self, connect: Callable[[], Any], *, mysql: bool, description: str) -> None:
        """Connects only when it is used, by `connect`: a DB-API connection without autocommit."""
        self._connect = connect
        self._mysql = mysql
        self._description = description

    def update(self, change: Change) -> None:
        """Raises LeaseStoreError where the server does not answer."""
        refused: Exception | None = None
        try:
            # A connection each time: the server may have been restarted since the last one.
            with closing(self._connect()) as connection, closing(connection.cursor()) as cursor:
                self._prepare(connection, cursor)
                text, now = self._locked(cursor)
                try:
                    changed = change(text, now)
                except Exception as error:
                    refused, changed = error, None
                if changed is not None:
                    cursor.execute(
                        "UPDATE oneshot_lease SET content = %s WHERE name = %s", (changed, _NAME)
                    )
                connection.commit()
        except InputError:
            raise
        except Exception as error:
            raise LeaseStoreError(f"{self._description}: {error}".strip()) from error
        if refused is not None:
            raise refused

    def _prepare(self, connection: Any, cursor: Any) -> None:
        """Makes the table and its row if they are not there, each in a transaction of its own."""
        if self._mysql:
            cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {WAIT_SECONDS:.0f}")
            cursor.execute("SHOW TABLES LIKE 'oneshot_lease'")
        else:
            cursor.execute(f"SET lock_timeout = '{WAIT_SECONDS:.0f}s'")
            cursor.execute("SELECT 1 WHERE to_regclass('oneshot_lease') IS NOT NULL")
        if cursor.fetchone() is None:
            if not self._mysql:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_TABLE_LOCK,))
            cursor.execute(_TABLE)
            connection.commit()
        cursor.execute("SELECT 1 FROM oneshot_lease WHERE name = %s", (_NAME,))
        if cursor.fetchone() is None:
            insert = "INSERT IGNORE" if self._mysql else "INSERT"
            ignore = "" if self._mysql else " ON CONFLICT DO NOTHING"
            cursor.execute(f"{insert} INTO oneshot_lease VALUES (%s, ''){ignore}", (_NAME,))
        # A lock of reading held here and another's would keep each other from writing.
        connection.commit()

    def _locked(self, cursor: Any) -> tuple[str, float]:
        """The content, locked until the transaction ends, and the server's time."""
        cursor.execute("SELECT content FROM oneshot_lease WHERE name = %s FOR UPDATE", (_NAME,))
        text = str(cursor.fetchone()[0])
        # Asked only now: the row may have been waited for.
        clock = (
            "UNIX_TIMESTAMP(SYSDATE(6))" if self._mysql else "extract(epoch FROM clock_timestamp())"
        )
        cursor.execute(f"SELECT {clock}")
        return text, float(cursor.fetchone()[0])
