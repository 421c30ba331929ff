"""Opens a gallery in an SQLite file or in PostgreSQL."""

from pathlib import Path
from typing import Final

from data_ingest.sources.kinds import Crop
from serving.gallery.embedder import Embedder
from serving.gallery.gallery import FALSE_ACCEPT_RATE, Gallery
from serving.gallery.store import Store

POSTGRES_SCHEMES: Final = ("postgresql://", "postgres://")


def open_gallery(
    location: str | Path,
    embedder: Embedder,
    *,
    false_accept_rate: float = FALSE_ACCEPT_RATE,
    in_memory: bool = True,
    crop: Crop | None = None,
) -> Gallery:
    """Opens a gallery, a new one if there is none.

    Args:
      location: path of an SQLite file, or `postgresql://user:password@host/database`.
      embedder: `FolderEmbedder` or `ServerEmbedder`, or one of your own; closed with the gallery,
        or if it cannot be opened.
      false_accept_rate: see `Gallery`.
      in_memory: for SQLite: search a copy in memory, for programs that answer many queries.
      crop: 'face': of each photo its one face; see `Gallery.crop`.
    """
    try:
        store = open_store(location, in_memory=in_memory)
    except BaseException:
        embedder.close()
        raise
    try:
        return Gallery(store, embedder, false_accept_rate=false_accept_rate, crop=crop)
    except BaseException:
        store.close()
        embedder.close()
        raise


def open_store(location: str | Path, *, in_memory: bool = True) -> Store:
    """The database alone; see `open_gallery`."""
    # Each database's modules only where it is used.
    if str(location).startswith(POSTGRES_SCHEMES):
        from serving.gallery.postgres.store import PostgresStore

        return PostgresStore(str(location))
    from serving.gallery.sqlite.store import SqliteStore

    return SqliteStore(Path(location), in_memory=in_memory)
