"""The vectors of one version of the model in SQLite, in a virtual table of their own."""

from collections.abc import Sequence
from typing import Any, Final

import apsw
import numpy as np

from serving.gallery.records import GalleryModel, ModelChanged, Template, Vectors, mean_with
from serving.gallery.sqlite_connection import rows, value

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
