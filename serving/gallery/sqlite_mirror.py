"""A copy of one model's vectors in memory that keeps up with the file."""

import itertools
from collections.abc import Iterable
from typing import Any, Final

import apsw
import numpy as np

from serving.gallery.mirror import Mirror
from serving.gallery.records import GalleryModel
from serving.gallery.sqlite_connection import rows, value

CHUNK: Final = 4096


def vector_table(key: int) -> str:
    """The table of a model's vectors; the key is a number, so the name is safe in SQL."""
    return f"vector_{int(key)}"


class FollowingMirror:
    """A mirror that catches up with what any process has committed."""

    def __init__(self, reader: apsw.Connection, model: GalleryModel) -> None:
        """Reads all vectors; inside a snapshot."""
        self.model = model
        self.mirror = Mirror(model.facts.dimensions)
        self._table = vector_table(model.key)
        self._data_version: int | None = None
        self._removed, self._added = _position(reader)
        self.mirror.reserve(value(reader, "SELECT images FROM total"))
        self._add(reader.execute(f"SELECT rowid, vector FROM {self._table}"))

    def follow(self, reader: apsw.Connection) -> None:
        """Catches up; inside a snapshot."""
        # Changes whenever another connection has committed: the store writes through another.
        data_version = value(reader, "PRAGMA data_version")
        if data_version == self._data_version:
            return
        for (image,) in rows(reader, "SELECT image FROM removal WHERE id > ?", [self._removed]):
            self.mirror.discard(image)
        self._add(
            reader.execute(
                f"SELECT id, (SELECT vector FROM {self._table} WHERE rowid = image.id) AS vector"
                " FROM image WHERE id > ? AND vector IS NOT NULL",
                (self._added,),
            )
        )
        self._removed, self._added = _position(reader)
        self._data_version = data_version

    def _add(self, vectors: Iterable[Any]) -> None:
        source = iter(vectors)
        while chunk := list(itertools.islice(source, CHUNK)):
            images = [row[0] for row in chunk]
            matrix = np.frombuffer(b"".join(row[1] for row in chunk), np.float32)
            self.mirror.add(images, matrix.reshape(len(images), -1))


def _position(reader: apsw.Connection) -> tuple[int, int]:
    """The last removal and the last image."""
    removed = value(reader, "SELECT coalesce(max(id), 0) FROM removal")
    return removed, value(reader, "SELECT coalesce(max(id), 0) FROM image")
