"""A gallery beside the models of the local server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from starlette.routing import BaseRoute

from serving.errors import Code, ServingError
from serving.gallery.api import gallery_routes
from serving.gallery.embedder import FolderEmbedder
from serving.gallery.following import Follower
from serving.gallery.gallery import FALSE_ACCEPT_RATE, Gallery
from serving.gallery.location import open_gallery
from serving.gallery.probe import probe_image
from serving.gallery.records import ModelFacts, Vectors
from serving.registry import ServerState
from serving.servable import ModelHost
from serving.version_states import State

FOLLOW_SECONDS: Final = 5.0


class HostEmbedder:
    """The versions that a server has loaded, in its batches; others from where they were pushed.

    A server drops the old version as soon as the new one is loaded. A gallery needs the old one
    until it is rebuilt.
    """

    def __init__(self, host: ModelHost) -> None:
        """Takes a host that is started and closed by the server."""
        self._host = host
        self._folder = FolderEmbedder(host.base_path)

    def latest(self) -> str:
        """The newest version that is available: one that cannot be loaded leads nowhere."""
        available = [s.version for s in self._host.status() if s.state is State.AVAILABLE]
        if not available:
            raise ServingError(Code.UNAVAILABLE, f"no version of {self._host.name} is available")
        return str(max(available))

    def embed(self, images: Sequence[bytes], *, version: str) -> Vectors:
        try:
            inputs = {"image": np.array(images, dtype=object)}
            outputs = self._host.predict(inputs, signature="embed", version=int(version)).outputs
        except ServingError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            return self._folder.embed(images, version=version)
        return np.asarray(outputs["embedding"])

    def facts(self, version: str) -> ModelFacts:
        try:
            probe = self.embed([probe_image()], version=version)
            pair = {"embedding_a": probe, "embedding_b": probe}
            logit = self._host.predict(pair, signature="match", version=int(version)).outputs
        except ServingError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            return self._folder.facts(version)
        return ModelFacts(version, bias=float(logit["logit"][0]), probe=probe[0])

    def close(self) -> None:
        """Unloads what it has loaded itself."""
        self._folder.close()


class GalleryService:
    """A gallery that follows the server's model, and its routes.

    Example:
      with GalleryService("output/gallery.db", model="siamese") as service:
          options = ServerOptions(models, routes=service.routes)
          with LocalServer(options) as server: ...
    """

    def __init__(
        self,
        location: str | Path,
        *,
        model: str,
        false_accept_rate: float = FALSE_ACCEPT_RATE,
        follow_seconds: float = FOLLOW_SECONDS,
    ) -> None:
        """Opens nothing yet.

        Args:
          location: see `open_gallery`.
          model: its name on the server.
          false_accept_rate: see `Gallery`.
          follow_seconds: how often to look for a newer version of the model.
        """
        self._location = location
        self._model = model
        self._rate = false_accept_rate
        self._follow_seconds = follow_seconds
        self._gallery: Gallery | None = None
        self._follower: Follower | None = None

    def routes(self, state: ServerState) -> Sequence[BaseRoute]:
        """Opens the gallery, and gives the routes of `serving.gallery.api`.

        Raises:
          ServingError: the database cannot be used.
          OSError: likewise.
        """
        self._gallery = open_gallery(
            self._location,
            HostEmbedder(state.hosts[self._model]),
            false_accept_rate=self._rate,
        )
        self._follower = Follower(self._gallery, every_seconds=self._follow_seconds)
        return gallery_routes(self._gallery, self._follower)

    def close(self) -> None:
        """Ends a rebuild under way, which the next server continues, and closes the gallery."""
        if self._follower is not None:
            self._follower.close()
        if self._gallery is not None:
            self._gallery.close()

    def __enter__(self) -> "GalleryService":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
