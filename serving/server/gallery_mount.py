"""Serves a gallery beside the models, whose images are embedded by the version that is served."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from starlette.routing import BaseRoute

from serving.errors import Code, ServingError
from serving.gallery.embedder import FolderEmbedder, probe_image
from serving.gallery.http import Follower, gallery_routes
from serving.gallery.open import open_gallery
from serving.gallery.records import ModelFacts, Vectors
from serving.saved_model.impostors import ImpostorPairs
from serving.server.batching import Array, Arrays
from serving.server.model_host import ModelHost


class HostEmbedder:
    """An `Embedder` whose images are merged into batches with all others that the host gets.

    A gallery needs the version it was embedded with until it is rebuilt, while the host drops it
    as soon as there is a newer one: that version is then loaded from its folder once more.
    """

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._folder = FolderEmbedder(host.base_path)

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

    def embed(self, images: Sequence[bytes], *, version: str) -> Vectors:
        """See `Embedder.embed`."""
        array = np.empty(len(images), dtype=object)
        array[:] = list(images)
        outputs = self._predict({"image": array}, "embed", version)
        if outputs is None:
            return self._folder.embed(images, version=version)
        return outputs["embedding"]

    def facts(self, version: str) -> ModelFacts:
        """See `Embedder.facts`."""
        probe = self.embed([probe_image()], version=version)
        outputs = self._predict({"embedding_a": probe, "embedding_b": probe}, "match", version)
        if outputs is None:
            return self._folder.facts(version)
        return ModelFacts(version, bias=float(outputs["logit"][0]), probe=probe[0])

    def impostors(self, version: str) -> tuple[ImpostorPairs, ...]:
        """See `Embedder.impostors`."""
        return self._folder.impostors(version)

    def close(self) -> None:
        """Unloads what was loaded beside the host."""
        self._folder.close()

    def _predict(self, inputs: Arrays, signature: str, version: str) -> dict[str, Array] | None:
        """What the host answers; None if it does not serve the version, or not any more."""
        if not version.isdecimal():
            return None
        try:
            return self._host.predict(inputs, signature=signature, version=int(version)).outputs
        except ServingError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise


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
