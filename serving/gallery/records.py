"""What a gallery keeps and what it answers."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.errors import Code, ServingError
from serving.gallery.threshold import Impostors

Vectors = npt.NDArray[np.float32]
"""`[N, D]`, or `[D]` for a single one."""


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


class NewImage(NamedTuple):
    """An image to be enrolled."""

    sha256: bytes
    content: bytes
    vector: Vectors


class Hit(NamedTuple):
    """An enrolled image near a query; `distance` is Manhattan."""

    image: int
    name: str
    distance: float


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
