"""Vectors in memory, searched exactly."""

from collections.abc import Sequence
from typing import Final

import faiss
import numpy as np

from serving.gallery.records import Vectors

FIRST_CAPACITY: Final = 1024
GROWTH: Final = 1.5


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
