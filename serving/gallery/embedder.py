"""Turns images into vectors, by a model in this process or on a server."""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from data_ingest.sources.kinds import Crop
from serving.client.images import encode_png
from serving.errors import Code, ServingError, invalid, reason_of
from serving.gallery.records import ModelFacts, Vectors
from serving.saved_model.contract import EMBED, EXTRA, MATCH, MODEL_CARD
from serving.saved_model.impostors import SHIPPED, ImpostorPairs, read_shipped
from serving.saved_model.trained_on import TRAINED_ON, TrainedOn, read_trained_on
from serving.saved_model.versions import is_complete, newest_complete, read_crop

if TYPE_CHECKING:
    from serving.client.calls import BlockingClient
    from serving.saved_model.loader import LoadedModel
T = TypeVar("T")
BATCH: Final = 64
LOADED: Final = 2
"""Versions kept in memory: the gallery's own, and the one that a rebuild embeds for."""
PROBE_SIDE: Final = 32


class Embedder(Protocol):
    """A model in one or more versions. Thread-safe."""

    def latest(self) -> str:
        """The version that new galleries begin with and a rebuild leads to.

        Raises:
          ServingError: UNAVAILABLE or NOT_FOUND: there is none.
        """

    def embed(self, images: Sequence[bytes], *, version: str) -> Vectors:
        """`[N, D]` vectors of encoded images.

        Raises:
          ServingError: INVALID_ARGUMENT: one of them is refused; NOT_FOUND: this version is gone.
        """

    def facts(self, version: str) -> ModelFacts:
        """What `version` is.

        Raises:
          ServingError: NOT_FOUND: it is gone.
        """

    def impostors(self, version: str, /) -> tuple[ImpostorPairs, ...]:
        """What `version` brings with it, see `read_shipped`; empty where that is not to be had.

        Raises:
          ServingError: FAILED_PRECONDITION: it cannot be read.
        """

    def trained_on(self, version: str, /) -> TrainedOn | None:
        """The images that `version` has seen; None where that is not to be had.

        Raises:
          ServingError: FAILED_PRECONDITION: it cannot be read.
        """

    def crop(self, version: str, /) -> Crop | None:
        """What was cut out of the images that `version` learnt of; None, too, if not known.

        Raises:
          ServingError: FAILED_PRECONDITION: it cannot be read.
        """

    def close(self) -> None: ...


class FolderEmbedder:
    """Loads versions from the folder where they are pushed, as TF Serving would."""

    def __init__(self, folder: Path) -> None:
        """Takes a folder of versions, or one of the versions, which is then the latest.

        Example:
          FolderEmbedder(Path("output/serving_model/siamese"))
        """
        self._pinned = folder.name if is_complete(folder) else None
        self._base = folder.parent if self._pinned else folder
        self._lock = threading.Lock()
        # The least recently used is not closed: a thread may be embedding with it.
        self._loaded = functools.lru_cache(maxsize=LOADED)(self._load)

    def latest(self) -> str:
        if self._pinned is not None:
            return self._pinned
        newest = newest_complete(self._base)
        if newest is None:
            raise ServingError(
                Code.NOT_FOUND,
                f"no model in {self._base}: give the folder that `oneshot run` pushes to, or one "
                "version in it",
            )
        return newest.name

    def embed(self, images: Sequence[bytes], *, version: str) -> Vectors:
        batches = [
            np.array(images[start : start + BATCH], dtype=object)
            for start in range(0, len(images), BATCH)
        ]
        return np.concatenate(
            [self.run(EMBED, {"image": batch}, version)["embedding"] for batch in batches]
        )

    def facts(self, version: str) -> ModelFacts:
        probe = self.embed([probe_image()], version=version)
        answer = self.run(MATCH, {"embedding_a": probe, "embedding_b": probe}, version)
        return ModelFacts(version, bias=float(answer["logit"][0]), probe=probe[0])

    def run(
        self, signature: str, inputs: Mapping[str, npt.NDArray[Any]], version: str
    ) -> Mapping[str, npt.NDArray[Any]]:
        """What a signature of a version answers; raises as `embed` does."""
        import tensorflow as tf

        model = self._model(version)
        try:
            return model.run(signature, inputs)
        except tf.errors.InvalidArgumentError as error:
            raise invalid(reason_of(error.message)) from error

    def impostors(self, version: str) -> tuple[ImpostorPairs, ...]:
        return self._brought(SHIPPED, read_shipped, version)

    def trained_on(self, version: str) -> TrainedOn | None:
        return self._brought(TRAINED_ON, read_trained_on, version)

    def crop(self, version: str) -> Crop | None:
        return self._brought(Path(EXTRA, MODEL_CARD), read_crop, version)

    def close(self) -> None:
        """Unloads every version."""
        self._loaded.cache_clear()

    def _brought(self, file: Path, read: Callable[[Path], T], version: str) -> T:
        """What lies beside the model, in `file`."""
        folder = self._folder(version)
        try:
            return read(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f"{folder / file} cannot be read ({error}): push the model again, or remove it",
            ) from error

    def _model(self, version: str) -> "LoadedModel":
        with self._lock:  # so that none is loaded twice
            return self._loaded(version)

    def _load(self, version: str) -> "LoadedModel":
        from serving.saved_model.loader import LoadedModel

        return LoadedModel(self._folder(version))

    def _folder(self, version: str) -> Path:
        folder = self._base / version
        # A version is a plain name; anything else would be a path of the caller's choice.
        if Path(version).name != version or not is_complete(folder):
            raise ServingError(
                Code.NOT_FOUND, f"version {version} of the model is not in {self._base}"
            )
        return folder


class ServerEmbedder:
    """Asks a server: the local one, or TF Serving.

    During a rebuild the server must serve both versions, the gallery's and the new one: TF Serving
    does with a `specific` policy that lists them, or `latest { num_versions: 2 }`.
    """

    def __init__(self, client: "BlockingClient") -> None:
        """Takes a client of the model; a version or label that it is pinned to is the latest.

        Raises:
          ValueError: the client crops images, which is the gallery's to do.
        """
        if client.crop is not None:
            raise ValueError("the gallery crops images itself: give it a client without a crop")
        self._client = client

    def latest(self) -> str:
        target = self._client.target
        if target.version is not None:
            return str(target.version)
        if target.label is not None:
            return str(self._client.wait_ready())
        available = [s.version for s in self._client.status() if s.state == "AVAILABLE"]
        if not available:
            raise ServingError(Code.UNAVAILABLE, f"no version of {target.model} is available")
        return str(max(available))

    def embed(self, images: Sequence[bytes], *, version: str) -> Vectors:
        return self._client.pinned(version=int(version)).embed(list(images))

    def facts(self, version: str) -> ModelFacts:
        pinned = self._client.pinned(version=int(version))
        probe = pinned.embed([probe_image()])
        return ModelFacts(version, bias=float(pinned.match(probe, probe).logit[0]), probe=probe[0])

    def impostors(self, _version: str, /) -> tuple[ImpostorPairs, ...]:
        """None: the API of TF Serving has no place for them."""
        return ()

    def trained_on(self, _version: str, /) -> None:
        """Not known: as `impostors`."""

    def crop(self, _version: str, /) -> None:
        """Not known: the API of TF Serving does not tell."""

    def close(self) -> None:
        """Closes the client."""
        self._client.close()


def probe_image() -> bytes:
    """A PNG, the same bytes for ever: a ring and a bar, black on white.

    A gallery compares vectors of this image over years, and imaging libraries compress differently
    from release to release.
    """
    y, x = np.mgrid[:PROBE_SIDE, :PROBE_SIDE] - PROBE_SIDE / 2 + 0.5
    radius = np.hypot(x, y)
    ink = ((radius > 7) & (radius < 10)) | ((np.abs(x - 4) < 2) & (np.abs(y) < 13))
    pixels = np.where(ink, 0, 255).astype(np.uint8)
    # Stored, not compressed: what zlib compresses to is not fixed either.
    return encode_png(pixels, level=0)
