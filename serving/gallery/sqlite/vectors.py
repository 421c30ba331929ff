"""The vectors of one version of the model in SQLite, in a virtual table of their own."""

import itertools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import apsw
import faiss
import numpy as np
import numpy.typing as npt

from serving.gallery.records import GalleryModel, ModelChanged, Template, Vectors, mean_with
from serving.gallery.sqlite.connection import rows, value

MAX_NEIGHBOURS: Final = 4096
"""The most that sqlite-vec gives for one query."""

_INCOMPLETE: Final = (
    "FROM identity LEFT JOIN embedded ON model = ? AND identity = identity.id"
    " WHERE identity.id > ? AND coalesce(images, 0) <>"
    " (SELECT count(*) FROM image WHERE image.identity = identity.id) ORDER BY identity.id LIMIT ?"
)


def vector_table(key: int) -> str:
    """The table of a model's vectors; the key is a number, so the name is safe in SQL."""
    return f"vector_{int(key)}"


def create(writer: apsw.Connection, key: int, *, dimensions: int) -> None:
    """Makes room for vectors."""
    writer.execute(
        f"CREATE VIRTUAL TABLE {vector_table(key)} USING vec0("
        f"vector float[{int(dimensions)}] distance_metric=L1)"
    )


def drop(writer: apsw.Connection, key: int) -> None:
    """Deletes all of them."""
    writer.execute(f"DROP TABLE {vector_table(key)}")


def still_there(connection: apsw.Connection, model: GalleryModel) -> bool:
    """Whether they may be used: a retired model's are about to be dropped."""
    state = value(connection, "SELECT state FROM model WHERE id = ?", [model.key])
    return state is not None and state != "retired"


def check_there(connection: apsw.Connection, model: GalleryModel) -> None:
    """Raises ModelChanged if they are not `still_there`."""
    if not still_there(connection, model):
        raise ModelChanged


def put(writer: apsw.Connection, model: GalleryModel, template: Template) -> None:
    """Stores someone's mean in place of the one there was."""
    table = vector_table(model.key)
    writer.execute(f"DELETE FROM {table} WHERE rowid = ?", (template.key,))
    writer.execute(
        f"INSERT INTO {table} (rowid, vector) VALUES (?, ?)",
        (template.key, template.mean.tobytes()),
    )
    writer.execute(
        "INSERT INTO embedded (model, identity, images) VALUES (?, ?, ?)"
        " ON CONFLICT (model, identity) DO UPDATE SET images = excluded.images",
        (model.key, template.key, template.images),
    )


def fold(
    writer: apsw.Connection, model: GalleryModel, identity: int, vectors: Sequence[Vectors]
) -> None:
    """Takes more vectors into someone's mean."""
    before = rows(
        writer,
        f"SELECT images, (SELECT vector FROM {vector_table(model.key)} WHERE rowid = identity)"
        " FROM embedded WHERE model = ? AND identity = ?",
        [model.key, identity],
    )
    count, blob = before[0] if before else (0, None)
    mean = None if blob is None else np.frombuffer(blob, np.float32)
    template = Template(identity, count + len(vectors), mean_with(mean, count, vectors))
    put(writer, model, template)


def delete(writer: apsw.Connection, key: int, identity: int) -> None:
    """Deletes someone's."""
    writer.execute(f"DELETE FROM {vector_table(key)} WHERE rowid = ?", (identity,))


def nearest(
    reader: apsw.Connection, model: GalleryModel, query: Vectors, count: int
) -> list[tuple[int, float]]:
    """Keys and distances of the `count` nearest, found by sqlite-vec in the file."""
    return rows(
        reader,
        f"SELECT rowid, distance FROM {vector_table(model.key)}"
        " WHERE vector MATCH ? AND k = ? ORDER BY distance",
        [query.tobytes(), min(count, MAX_NEIGHBOURS)],
    )


def mean_of(reader: apsw.Connection, model: GalleryModel, name: str) -> Vectors | None:
    """`[D]`, None if there is no such name."""
    vector = value(
        reader,
        f"SELECT vector FROM {vector_table(model.key)}"
        " WHERE rowid = (SELECT id FROM identity WHERE name = ?)",
        [name],
    )
    return None if vector is None else np.frombuffer(vector, np.float32)


def sample(reader: apsw.Connection, model: GalleryModel, people: int) -> Vectors:
    """`[N, D]`, up to so many, the same at each call."""
    found = rows(
        reader,
        # Scattered, for those who enrolled one after the other may be of one kind.
        f"SELECT (SELECT vector FROM {vector_table(model.key)} WHERE rowid = identity)"
        " FROM (SELECT identity FROM embedded WHERE model = ?"
        " ORDER BY (identity * 2654435761) & 4294967295 LIMIT ?)",
        [model.key, people],
    )
    vectors = np.frombuffer(b"".join(row[0] for row in found), np.float32)
    return vectors.reshape(-1, model.facts.dimensions)


def incomplete(
    reader: apsw.Connection, model: GalleryModel, *, after: int = 0, limit: int = 1
) -> list[Any]:
    """(key, name) of people after a key whose images are not all in their vector."""
    return rows(reader, f"SELECT identity.id, name {_INCOMPLETE}", [model.key, after, limit])


FIRST_CAPACITY: Final = 1024
GROWTH: Final = 1.5


class Neighbours(NamedTuple):
    """`[K]` keys and Manhattan distances, nearest first."""

    keys: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]


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
        return Neighbours(self._keys[rows[0]], distances[0])


CHUNK: Final = 4096


class FollowingMirror:
    """A mirror that catches up with what any process has committed."""

    def __init__(self, reader: apsw.Connection, model: GalleryModel) -> None:
        """Reads all vectors; inside a snapshot."""
        self.model = model
        self.mirror = Mirror(model.facts.dimensions)
        self._table = vector_table(model.key)
        self._data_version: int | None = None
        self._seen = _last_change(reader)
        self.mirror.reserve(value(reader, "SELECT names FROM total"))
        source = reader.execute(f"SELECT rowid, vector FROM {self._table}")
        while chunk := list(itertools.islice(source, CHUNK)):
            self._add(chunk)

    def follow(self, reader: apsw.Connection) -> None:
        """Catches up; inside a snapshot."""
        # Changes whenever another connection has committed: the store writes through another.
        data_version = value(reader, "PRAGMA data_version")
        if data_version == self._data_version:
            return
        changed = rows(reader, "SELECT DISTINCT identity FROM change WHERE id > ?", [self._seen])
        for (identity,) in changed:
            self.mirror.discard(identity)
            vector = value(reader, f"SELECT vector FROM {self._table} WHERE rowid = ?", [identity])
            if vector is not None:
                self._add([(identity, vector)])
        self._seen = _last_change(reader)
        self._data_version = data_version

    def _add(self, vectors: Sequence[Any]) -> None:
        matrix = np.frombuffer(b"".join(row[1] for row in vectors), np.float32)
        self.mirror.add([row[0] for row in vectors], matrix.reshape(len(vectors), -1))


def _last_change(reader: apsw.Connection) -> int:
    last: int = value(reader, "SELECT coalesce(max(id), 0) FROM change")
    return last
