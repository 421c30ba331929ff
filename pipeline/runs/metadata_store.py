"""Locates ML Metadata: a SQLite file in the output folder, or PostgreSQL or MySQL by URL."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from ml_metadata.proto import metadata_store_pb2

from data_ingest.durable import write_atomically
from data_ingest.errors import InputError, refuse_unescaped
from data_ingest.paths import absolute
from pipeline.runs.lease import DEFAULT_TTL, Lease
from pipeline.runs.lease_store import DatabaseLeaseStore, FileLeaseStore
from pipeline.runs.postgres_strings import keep_backslashes
from pipeline.runs.workspace import Workspace
from pipeline.settings import MetadataSettings

URL_VARIABLE: Final = "ONESHOT_METADATA_URL"
_FORMS: Final = (
    "sqlite:////folder/metadata.db, postgresql://user:password@host:5432/database or "
    "mysql://user:password@host:3306/database"
)
_PLAIN_MODES: Final = ("disable", "allow", "prefer")
_CONNECT_SECONDS: Final = 10
_LONGEST_SQLITE_PATH: Final = 500
"""Of its 512 bytes some are for the ending of the journal beside the file."""


@dataclass(frozen=True)
class MetadataLocation:
    """One store of ML Metadata."""

    url: SplitResult = field(repr=False)
    """Of scheme `sqlite`, `postgresql` or `mysql`."""

    def __str__(self) -> str:
        """The URL without user, password and options, for people and logs."""
        host = self._host if self.sqlite_file is None else ""
        return f"{self.url.scheme}://{host}{self.url.path}"

    @property
    def secret_url(self) -> str:
        """The whole URL, for `parse_url` of a process that needs it."""
        if self.sqlite_file is not None:
            return f"sqlite:///{quote(self.url.path)}"
        # Not geturl(), which leaves out the slashes where there is no host.
        query = f"?{self.url.query}" if self.url.query else ""
        return f"{self.url.scheme}://{self.url.netloc}{self.url.path}{query}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no log may hold: the password, as it is, in a URL and in printed messages."""
        quoted = self.url.password
        if not quoted:
            return ()
        forms = {quoted}
        for password in (unquote(quoted), _in_connection_string(unquote(quoted))):
            printed = str(metadata_store_pb2.MySQLDatabaseConfig(password=password))
            forms |= {password, printed.partition('"')[2].rpartition('"')[0]}
        # One may be a part of another.
        return tuple(sorted(forms, key=len, reverse=True))

    @property
    def sqlite_file(self) -> Path | None:
        """The file of a SQLite store; None where it is a server."""
        return Path(self.url.path) if self.url.scheme == "sqlite" else None

    def connection(self) -> metadata_store_pb2.ConnectionConfig:
        """How `ml_metadata.MetadataStore` opens it. The database exists, its tables may not."""
        config = metadata_store_pb2.ConnectionConfig()
        if self.sqlite_file is not None:
            self.sqlite_file.parent.mkdir(parents=True, exist_ok=True)
            config.sqlite.filename_uri = str(self.sqlite_file)
            config.sqlite.connection_mode = config.sqlite.READWRITE_OPENCREATE
        elif self.url.scheme == "mysql":
            config.mysql.MergeFrom(
                metadata_store_pb2.MySQLDatabaseConfig(
                    **self._server(3306, "database"),
                    socket=self.option("unix_socket"),
                    ssl_options={"ca": self.option("ssl_ca")},
                    skip_db_creation=True,
                )
            )
        else:
            keep_backslashes()
            # ML Metadata joins these to a connection string as they are.
            for name, value in self._server(5432, "dbname").items():
                setattr(config.postgresql, name, _in_connection_string(str(value)))
            config.postgresql.skip_db_creation = True
        return config

    def lease(self, *, ttl: float = DEFAULT_TTL) -> Lease:
        """The lease of whoever runs, promotes or cleans up in this store.

        In the database where that is a server; else a file beside SQLite's, in the folder that
        the hosts share. `ttl` seconds after its last renewal it is another's to take.
        """
        if self.sqlite_file is not None:
            return Lease(FileLeaseStore(self.sqlite_file.with_name("lease.json")), ttl=ttl)
        mysql = self.url.scheme == "mysql"
        return Lease(DatabaseLeaseStore(self._connect, mysql=mysql, description=str(self)), ttl=ttl)

    @property
    def _host(self) -> str:
        # PostgreSQL's way of naming the folder of a Unix socket.
        return self.url.hostname or self.option("host") or "localhost"

    def _server(self, port: int, database: str) -> dict[str, Any]:
        """How to reach a server: `port` unless another is given, `database` names the last."""
        return {
            "host": self._host,
            "port": self.url.port or port,
            "user": unquote(self.url.username or ""),
            "password": unquote(self.url.password or ""),
            database: unquote(self.url.path.removeprefix("/")),
        }

    def option(self, name: str) -> str:
        """A parameter behind the question mark; empty if it is not there."""
        return parse_qs(self.url.query).get(name, [""])[-1]

    def _connect(self) -> Any:
        """Of DB-API 2.0."""
        if self.url.scheme == "mysql":
            import pymysql

            return pymysql.connect(
                **self._server(3306, "database"),
                unix_socket=self.option("unix_socket") or None,
                connect_timeout=_CONNECT_SECONDS,
                ssl_ca=self.option("ssl_ca") or None,
            )
        try:
            import psycopg
        except ImportError as error:
            raise InputError(
                "metadata.url: PostgreSQL needs psycopg: pip install 'siamese-oneshot[postgres]'"
            ) from error
        return psycopg.connect(self.secret_url, connect_timeout=_CONNECT_SECONDS)


def locate(
    settings: MetadataSettings, workspace: Workspace, environ: Mapping[str, str] = os.environ
) -> MetadataLocation:
    """Where the metadata of an output folder are; asks no server.

    `ONESHOT_METADATA_URL` goes before `metadata.url`, and both before the folder's own file.

    Raises:
      InputError: the URL cannot be used, or the folder's history is in another store.
    """
    given = environ.get(URL_VARIABLE) or (settings.url and settings.url.get_secret_value())
    location = (
        parse_url(given)
        if given
        else MetadataLocation(SplitResult("sqlite", "", str(workspace.metadata_db), "", ""))
    )
    file = location.sqlite_file
    if file is not None and len(os.fsencode(file)) > _LONGEST_SQLITE_PATH:
        raise InputError(
            f"{file}: longer than the {_LONGEST_SQLITE_PATH} bytes that SQLite takes as a path: "
            "give a shorter --output, or a link to it"
        )
    _check_known(location, workspace)
    return location


def remember(location: MetadataLocation, workspace: Workspace) -> None:
    """Notes in the output folder which store holds its history, for `locate` to insist on."""
    if location.sqlite_file != workspace.metadata_db and not _note(workspace).exists():
        write_atomically(_note(workspace), f"{location}\n")


def parse_url(url: str) -> MetadataLocation:
    """Reads a URL.

    Raises:
      InputError: it is none of the three kinds, or lacks a part; the message never quotes it.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InputError(f"metadata.url: not a URL; write it as {_FORMS}") from error
    # SQLAlchemy's way of naming a driver is understood too.
    scheme = parts.scheme.partition("+")[0]
    scheme = "postgresql" if scheme == "postgres" else scheme
    if scheme not in ("sqlite", "postgresql", "mysql"):
        raise InputError(f"metadata.url: unknown kind '{scheme}:'; write it as {_FORMS}")
    if scheme == "sqlite":
        # sqlite:///relative and sqlite:////absolute, as SQLAlchemy has it.
        path = unquote(parts.path.removeprefix("/"))
        if parts.netloc or not path:
            raise InputError(f"metadata.url: which file? Write it as {_FORMS}")
        return MetadataLocation(SplitResult("sqlite", "", str(absolute(Path(path))), "", ""))
    refuse_unescaped(url, "metadata.url")
    if not parts.path.strip("/"):
        raise InputError(f"metadata.url: which database? Write it as {_FORMS}")
    location = MetadataLocation(parts._replace(scheme=scheme))
    if scheme == "postgresql" and location.option("sslmode") not in ("", *_PLAIN_MODES):
        raise InputError(
            "metadata.url: ML Metadata's PostgreSQL client is built without TLS, so sslmode can "
            f"only be {', '.join(_PLAIN_MODES)}; encrypt by a tunnel or a proxy on this host"
        )
    return location


def _in_connection_string(value: str) -> str:
    """A value as PostgreSQL's connection strings have it (libpq, section 34.1.1.1)."""
    if re.fullmatch(r"[^\s'\\]*", value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _note(workspace: Workspace) -> Path:
    return workspace.root / "metadata.url"


def _check_known(location: MetadataLocation, workspace: Workspace) -> None:
    """A URL forgotten once would begin a second history, in which no model has a baseline."""
    note = _note(workspace)
    known = note.read_text(encoding="utf-8").strip() if note.exists() else ""
    if known and known != str(location):
        raise InputError(
            f"{workspace.root}: the history of this folder is in {known}, not in {location}; set "
            f"metadata.url or {URL_VARIABLE}, or delete {note} to begin a new history"
        )
    if not known and workspace.metadata_db.exists() and location.sqlite_file is None:
        raise InputError(
            f"{workspace.root}: the history of this folder is in {workspace.metadata_db}, not in "
            f"{location}; give another --output, or move that file away to begin a new history"
        )
