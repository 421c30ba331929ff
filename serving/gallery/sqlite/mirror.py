"""A copy of a model's vectors in memory, kept up with the database and searched exactly."""

import itertools
from collections.abc import Sequence
from typing import Any, Final

import faiss
import numpy as np

from serving.gallery.records import GalleryModel, Vectors
from serving.gallery.sqlite.connection import SqliteSession
from serving.gallery.store import vector_table

FIRST_CAPACITY: Final = 1024
GROWTH: Final = 1.5
CHUNK: Final = 4096
_LAST_CHANGE: Final = "SELECT coalesce(max(id), 0) FROM change"


class Mirror:
    """Vectors by key, searched one by one, so that the answer is exact. Not thread-safe.

    The rows are dense: the last one takes the place of one that is removed, and its own memory is
    cleared.
    """

    def __init__(self, dimensions: int) -> None:
        self._vectors = np.zeros((FIRST_CAPACITY, dimensions), np.float32)
        self._keys = np.zeros(FIRST_CAPACITY, np.int64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def reserve(self, size: int) -> None:
        """Makes room for `size` vectors at once, instead of step by step."""
        more = size - len(self._keys)
        if more > 0:
            # Zeros cost no memory before they are written to.
            vectors = np.zeros((size, self._vectors.shape[1]), np.float32)
            vectors[: self._size] = self._vectors[: self._size]
            self._vectors = vectors
            self._keys = np.concatenate([self._keys, np.zeros(more, np.int64)])

    def add(self, keys: Sequence[int], vectors: Vectors) -> None:
        """Adds `[N, D]` vectors whose keys are not there yet."""
        end = self._size + len(keys)
        if end > len(self._keys):
            self.reserve(max(end, int(len(self._keys) * GROWTH)))
        self._vectors[self._size : end] = vectors
        self._keys[self._size : end] = keys
        self._size = end

    def discard(self, key: int) -> None:
        """Forgets a vector, if it is there."""
        for row in np.flatnonzero(self._keys[: self._size] == key):
            self._size -= 1
            self._vectors[row] = self._vectors[self._size]
            self._keys[row] = self._keys[self._size]
            self._vectors[self._size] = 0
            self._keys[self._size] = 0

    def nearest(self, query: Vectors, count: int) -> list[tuple[int, float]]:
        """Keys and Manhattan distances of the `count` nearest to `query` `[D]`, nearest first."""
        count = min(count, self._size)
        if count == 0:
            return []
        # A scan for one query is bound by memory: more threads only wait for each other, and on a
        # busy machine for a core.
        faiss.omp_set_num_threads(1)
        distances, rows = faiss.knn(
            query[np.newaxis], self._vectors[: self._size], count, metric=faiss.METRIC_L1
        )
        return list(zip(self._keys[rows[0]].tolist(), distances[0].tolist(), strict=True))


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
