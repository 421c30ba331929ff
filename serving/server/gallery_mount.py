"""Serves a gallery beside the models, whose images are embedded by the version that is served."""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.routing import BaseRoute

from serving.errors import Code, ServingError
from serving.gallery.embedder import FolderEmbedder
from serving.gallery.http import Follower, gallery_routes
from serving.gallery.open import open_gallery
from serving.server.batching import Arrays
from serving.server.model_host import ModelHost


class HostEmbedder(FolderEmbedder):
    """An `Embedder` whose images are merged into batches with all others that the host gets.

    A gallery needs the version it was embedded with until it is rebuilt, while the host drops it
    as soon as there is a newer one: that version is then loaded from its folder once more.
    """

    def __init__(self, host: ModelHost) -> None:
        super().__init__(host.base_path)
        self._host = host

    def latest(self) -> str:
        """The newest version that is served.

        Raises:
          ServingError: UNAVAILABLE: none is.
        """
        # Also NOT_FOUND: before the first look at the folder nothing is known yet.
        try:
            return str(self._host.metadata().version)
        except ServingError as error:
            raise ServingError(
                Code.UNAVAILABLE, f"no version of {self._host.name} is available"
            ) from error

    def run(self, signature: str, inputs: Arrays, version: str) -> Arrays:
        """See `FolderEmbedder.run`."""
        if version.isdecimal():
            try:
                return self._host.predict(inputs, signature=signature, version=int(version)).outputs
            except ServingError as error:
                if error.code is not Code.NOT_FOUND:  # not served, or not any more
                    raise
        return super().run(signature, inputs, version)


@contextmanager
def gallery_mount(location: str, host: ModelHost) -> Iterator[list[BaseRoute]]:
    """The REST routes of a gallery that follows its model.

    At the end a rebuild under way stops between two batches, and the gallery is closed.

    Args:
      location: SQLite file or PostgreSQL URL, see `open_gallery`.
      host: the model; not closed by this.

    Raises:
      ServingError, OSError: the gallery cannot be opened.
    """
    gallery = open_gallery(location, HostEmbedder(host))
    follower = Follower(gallery, every_seconds=1.0)
    try:
        yield gallery_routes(gallery, follower)
    finally:
        follower.close()
        gallery.close()
