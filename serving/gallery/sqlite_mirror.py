"""A copy of one model's vectors in memory that keeps up with the file."""

import itertools
from collections.abc import Sequence
from typing import Any, Final

import apsw
import numpy as np

from serving.gallery.mirror import Mirror
from serving.gallery.records import GalleryModel
from serving.gallery.sqlite_connection import rows, value
from serving.gallery.sqlite_vectors import vector_table

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
