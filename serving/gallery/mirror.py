"""Exact nearest neighbours in memory."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from serving.gallery.records import Vectors

FIRST_CAPACITY: Final = 1024
GROWTH: Final = 1.5


class Neighbours(NamedTuple):
    """`[K]` image ids and Manhattan distances, nearest first."""

    images: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]


class Mirror:
    """Vectors by image id, searched one by one, so that the answer is exact. Not thread-safe.

    The rows are dense: the last one takes the place of one that is removed, and its own memory is
    cleared.
    """

    def __init__(self, dimensions: int) -> None:
        self._vectors = np.zeros((FIRST_CAPACITY, dimensions), np.float32)
        self._images = np.zeros(FIRST_CAPACITY, np.int64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def reserve(self, size: int) -> None:
        """Makes room for `size` vectors at once, instead of step by step."""
        more = size - len(self._images)
        if more > 0:
            # Zeros cost no memory before they are written to.
            vectors = np.zeros((size, self._vectors.shape[1]), np.float32)
            vectors[: self._size] = self._vectors[: self._size]
            self._vectors = vectors
            self._images = np.concatenate([self._images, np.zeros(more, np.int64)])

    def add(self, images: Sequence[int], vectors: Vectors) -> None:
        """Adds `[N, D]` vectors of images that are not there yet."""
        end = self._size + len(images)
        if end > len(self._images):
            self.reserve(max(end, int(len(self._images) * GROWTH)))
        self._vectors[self._size : end] = vectors
        self._images[self._size : end] = images
        self._size = end

    def discard(self, image: int) -> None:
        """Forgets a vector, if it is there."""
        for row in np.flatnonzero(self._images[: self._size] == image):
            self._size -= 1
            self._vectors[row] = self._vectors[self._size]
            self._images[row] = self._images[self._size]
            self._vectors[self._size] = 0
            self._images[self._size] = 0

    def nearest(self, query: Vectors, count: int) -> Neighbours:
        """The `count` nearest, or all if they are fewer, to `query` of shape `[D]`."""
        count = min(count, self._size)
        if count == 0:
            return Neighbours(np.empty(0, np.int64), np.empty(0, np.float32))
        # A scan for one query is bound by memory: more threads only wait for each other, and on a
        # busy machine for a core.
        faiss.omp_set_num_threads(1)
        distances, rows = faiss.knn(
            query[np.newaxis], self._vectors[: self._size], count, metric=faiss.METRIC_L1
        )
        return Neighbours(self._images[rows[0]], distances[0])
