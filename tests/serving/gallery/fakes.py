"""A model whose people are written in their images, so that what is near what is known."""

import functools
import hashlib
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from data_ingest.sources.kinds import ANY_KIND, Crop
from serving.client.images import encode_png
from serving.errors import Code, ServingError
from serving.gallery.embedder import probe_image
from serving.gallery.records import ModelFacts, Vectors
from serving.saved_model.impostors import ImpostorPairs, held_out_pairs
from serving.saved_model.trained_on import TrainedOn, digest_of

BIAS = 6.0
WIDTH = 16


def photo(person: str, shot: int = 0) -> bytes:
    """An image of someone; shots of one person are alike, people are not."""
    return written(f"photo/{person}/{shot}/".encode())


@functools.cache
def written(text: bytes) -> bytes:
    """A PNG whose pixels are this text and, at the end, its digest; uncompressed."""
    pixels = text.ljust(-len(text) % WIDTH + len(text), b"\0") + hashlib.sha256(text).digest() * 8
    return encode_png(np.frombuffer(pixels, np.uint8).reshape(-1, WIDTH), level=0)


def text_of(image: bytes) -> bytes:
    """What is written in the pixels of an image, digest and all."""
    with Image.open(io.BytesIO(image)) as opened:
        return opened.tobytes()


class FakeModels:
    """Versions '1' to '9' of an embedder; all of them are there unless `available` says else.

    Each version has vectors of its own: compared across versions, a person is no more alike to
    himself than to anybody else.
    """

    def __init__(
        self,
        *,
        latest: str = "1",
        dimensions: int = 16,
        salt: str = "",
        ships: bool = True,
        trained_on: Sequence[bytes] | None = (),
        noise: float = 0.05,
    ) -> None:
        self.newest = latest
        self.available = {str(number) for number in range(1, 10)}
        self.dimensions = dimensions
        self.salt = salt
        self.ships = ships
        self.seen = trained_on
        self.noise = noise
        self.trained_with_crop: Crop | None = None
        self.embedded: list[tuple[str, int]] = []
        self.closed = False

    def latest(self) -> str:
        return self.newest

    def embed(self, images: Sequence[bytes], *, version: str) -> Vectors:
        if version not in self.available:
            raise ServingError(Code.NOT_FOUND, f"version {version} is not loaded")
        self.embedded.append((version, len(images)))
        return np.stack([self._vector(image, version) for image in images])

    def facts(self, version: str) -> ModelFacts:
        return ModelFacts(version, BIAS, self.embed([probe_image()], version=version)[0])

    def impostors(self, version: str) -> tuple[ImpostorPairs, ...]:
        if not self.ships:
            return ()
        return _held_out(self.salt, self.dimensions, self.noise, version)

    def crop(self, _version: str, /) -> Crop | None:
        return self.trained_with_crop

    def trained_on(self, _version: str, /) -> TrainedOn | None:
        if self.seen is None:
            return None
        return TrainedOn(np.array(sorted(map(digest_of, self.seen)), np.uint64), ANY_KIND)

    def close(self) -> None:
        self.closed = True

    def _vector(self, image: bytes, version: str) -> Vectors:
        text = text_of(image)
        if text.startswith(b"refused"):
            raise ServingError(Code.INVALID_ARGUMENT, "not an image that the model can decode")
        return _vector(text, f"{self.salt}/{version}/".encode(), self.dimensions, self.noise)


@functools.cache
def _held_out(salt: str, size: int, noise: float, version: str) -> tuple[ImpostorPairs, ...]:
    people = np.repeat(np.arange(40), 2)
    photos = [text_of(photo(f"held out {p}", n % 2)) for n, p in enumerate(people)]
    vectors = [_vector(text, f"{salt}/{version}/".encode(), size, noise) for text in photos]
    return held_out_pairs(np.stack(vectors), people, people * 0, bias=BIAS)


@functools.cache
def _vector(text: bytes, seed: bytes, size: int, noise: float) -> Vectors:
    kind, _, rest = text.partition(b"/")
    person = rest.split(b"/")[0] if kind == b"photo" else text
    return (_normal(seed + person, size) + noise * _normal(seed + text, size)).astype(np.float32)


def _normal(seed: bytes, size: int) -> Vectors:
    number = int.from_bytes(hashlib.sha256(seed).digest()[:8], "big")
    return np.random.default_rng(number).normal(size=size).astype(np.float32)
