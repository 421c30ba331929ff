"""What a gallery keeps and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.errors import Code, ServingError
from serving.gallery.threshold import Impostors

Vectors = npt.NDArray[np.float32]
"""`[N, D]`, or `[D]` for a single one."""
MODEL_COLUMNS: Final = "id, version, bias, probe, state, impostors"
"""How databases keep a `GalleryModel`: the probe as bytes, the impostors as JSON."""


@dataclass(frozen=True)
class ModelFacts:
    """What tells one version of a model from another.

    Attributes:
      version: as the server or the folder calls it.
      bias: `b0` of `logit = b0 - ||v_a - v_b||`, the logit of an image with itself.
      probe: `[D]`, the vector of an image that is the same for every gallery: two models that
        happen to have the same version number are told apart by it.
    """

    version: str
    bias: float
    probe: Vectors

    @property
    def dimensions(self) -> int:
        return int(self.probe.shape[0])


@dataclass(frozen=True)
class GalleryModel:
    """A version of the model that a gallery has vectors of.

    Attributes:
      key: names its table of vectors.
      state: `building` until every image is embedded, then `active`, then `retired`.
      impostors: how alike different people look to it; None before there was enough to say.
    """

    key: int
    facts: ModelFacts
    state: Literal["building", "active", "retired"]
    impostors: Impostors | None

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> "GalleryModel":
        """From a database's `MODEL_COLUMNS`."""
        key, version, bias, probe, state, impostors = row
        return cls(
            key,
            ModelFacts(version, bias, np.frombuffer(probe, np.float32)),
            state,
            None if impostors is None else Impostors.from_json(impostors),
        )


class NewImage(NamedTuple):
    """An image to be enrolled."""

    sha256: bytes
    content: bytes
    vector: Vectors


class Hit(NamedTuple):
    """Someone enrolled near a query; `distance` is Manhattan, to the mean of the vectors."""

    name: str
    distance: float


class Person(NamedTuple):
    """Someone whose images are to be embedded; `key` is the database's."""

    key: int
    name: str
    images: tuple[bytes, ...]


class Template(NamedTuple):
    """The mean `[D]` of the vectors of someone's images, so many as there are."""

    key: int
    images: int
    mean: Vectors


class Identity(NamedTuple):
    """Someone enrolled. Times are seconds since 1970, digests hexadecimal SHA-256 of the images."""

    name: str
    created: float
    updated: float
    images: tuple[str, ...]


class CohortImage(NamedTuple):
    """An image of someone who is not enrolled; `group` says which of them are the same person."""

    group: str
    content: bytes


class ModelChanged(Exception):
    """The gallery's vectors are of another version of the model by now: embed again."""


class ImageTaken(ServingError):
    """An image is enrolled under another name."""

    def __init__(self, digest: str, name: str) -> None:
        super().__init__(
            Code.ALREADY_EXISTS,
            f"the image with SHA-256 {digest[:16]}… is already enrolled as {name!r}; one image "
            "cannot be two people: remove it there first",
        )


def json_or_null(impostors: Impostors | None) -> str | None:
    """The last of a database's `MODEL_COLUMNS`."""
    return None if impostors is None else impostors.to_json()


def mean_with(mean: Vectors | None, count: int, vectors: Sequence[Vectors]) -> Vectors:
    """The mean of `count` vectors, whose mean is `mean`, and of more of them."""
    total = np.sum(vectors, axis=0, dtype=np.float64)
    if mean is not None:
        total += mean.astype(np.float64) * count
    return np.asarray(total / (count + len(vectors)), np.float32)
