"""What a gallery answers."""

import math
from typing import NamedTuple

from serving.gallery.store import Counts
from serving.gallery.threshold import Impostors, Threshold


class Enrolment(NamedTuple):
    """`added` images were new, `known` ones were enrolled under this name already."""

    name: str
    added: int
    known: int


class Candidate(NamedTuple):
    """Someone this alike: `score`, in [0, 1], is the sigmoid of `logit`."""

    name: str
    score: float
    logit: float


class Identification(NamedTuple):
    """Who an image shows.

    Attributes:
      name: None for someone unknown.
      candidates: the nearest names, best first, whether above the threshold or not.
      threshold: the logit above which the best candidate is believed.
      model_version: the version that embedded the image and the gallery.
    """

    name: str | None
    candidates: tuple[Candidate, ...]
    threshold: float
    model_version: str


class Verification(NamedTuple):
    """Whether an image shows the person of that name: `same` if `logit` is above `threshold`."""

    name: str
    same: bool
    score: float
    logit: float
    threshold: float
    model_version: str


class Removal(NamedTuple):
    """`images` were deleted, 0 if the name was unknown.

    `erased` tells whether the database's files hold nothing of them any more.
    """

    name: str
    images: int
    erased: bool


class Status(NamedTuple):
    """What a gallery holds, and by what it judges.

    Attributes:
      counts: names and images.
      model_version: of the vectors; None before the first enrolment.
      latest_version: that a rebuild leads to; None where the model cannot be reached.
      false_accept_rate: that is asked for.
      threshold: of `identify`, for a name with one image.
      impostors: what thresholds rest on.
    """

    counts: Counts
    model_version: str | None
    latest_version: str | None
    false_accept_rate: float
    threshold: Threshold
    impostors: Impostors | None


def sigmoid(logit: float) -> float:
    """`1 / (1 + exp(-logit))` without overflow."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))
