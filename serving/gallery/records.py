"""What a gallery keeps and what it answers."""

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.errors import Code, ServingError
from serving.gallery.threshold import Impostors, Threshold

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
      impostors: how alike different identities look to it; None before there was enough to say.
    """

    key: int
    facts: ModelFacts
    impostors: Impostors | None


class Unembedded(NamedTuple):
    """An identity whose images are to be embedded; `key` is the database's."""

    key: int
    name: str
    images: tuple[bytes, ...]


class Template(NamedTuple):
    """The mean `[D]` of the vectors of an identity's images, so many as there are."""

    key: int
    images: int
    mean: Vectors


class Identity(NamedTuple):
    """What is enrolled under a name.

    Attributes:
      created: seconds since 1970.
      updated: when the newest image was added, seconds since 1970.
      images: their SHA-256 digests, hexadecimal, in order of enrolment.
    """

    name: str
    created: float
    updated: float
    images: tuple[str, ...]


class CohortImage(NamedTuple):
    """An image of an outsider, who is not enrolled; those of one outsider have one `group`."""

    group: str
    content: bytes


class ModelChanged(Exception):
    """The gallery's vectors are of another version of the model by now: embed again."""


class AlreadyEnrolled(ServingError):
    """An image is enrolled under another name.

    Attributes:
      name: under which it was to be enrolled.
      place: of the image among those given for its name, from 0.
    """

    def __init__(self, message: str, *, name: str, place: int) -> None:
        super().__init__(Code.ALREADY_EXISTS, message)
        self.name = name
        self.place = place


class Enrolment(NamedTuple):
    """`added` images were new, `known` ones were enrolled under this name already."""

    name: str
    added: int
    known: int


class Candidate(NamedTuple):
    """An identity this alike: `score`, in [0, 1], is the sigmoid of `logit`."""

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
    """Whether an image shows the identity `name`: `same` if `logit` is above `threshold`.

    There is no probability beside the answer: one on pairs half of which show one identity says
    nothing of how many outsiders a threshold lets in.

    Attributes:
      false_accept_rate: that the threshold belongs to.
      least_rate: the least false-accept rate at which the image is accepted; None where it is
        refused at every rate.
    """

    name: str
    same: bool
    logit: float
    threshold: float
    false_accept_rate: float
    least_rate: float | None
    model_version: str


class Removal(NamedTuple):
    """`images` were deleted, 0 if the name was unknown.

    `erased` tells whether the database's files hold nothing of them any more.
    """

    name: str
    images: int
    erased: bool


class Counts(NamedTuple):
    """How much is enrolled."""

    names: int
    images: int


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


def reply_of(answer: Any) -> dict[str, Any]:
    """The fields of an answer, ready for `json.dumps`."""
    fields: dict[str, Any] = answer._asdict()
    if isinstance(answer, Identification):
        fields["candidates"] = [candidate._asdict() for candidate in answer.candidates]
    if isinstance(answer, Status):
        del fields["impostors"]
        counts = fields.pop("counts")._asdict()
        bound, calibration = answer.threshold.logit, calibration_of(answer)
        return {**counts, **fields, "threshold": bound, "calibration": calibration}
    if isinstance(answer, Identity):
        for name in ("created", "updated"):
            time = datetime.fromtimestamp(fields[name], timezone.utc)
            fields[name] = time.isoformat(timespec="seconds")
    return fields


def calibration_of(status: Status) -> dict[str, Any]:
    """What thresholds rest on, without the distribution itself.

    `source` is "model", "cohort" or "gallery", or "scores" where no pairs are known; `advice` is
    null where the threshold is to be relied on. `left_out_as_trained_on` identities of the cohort,
    or else of the gallery, are no part of it; null where it is not known who should not be.
    """
    known, (_, source, advice) = status.impostors, status.threshold
    pairs = None
    if known is not None and source != "scores":
        pairs = known.shipped[0] if source == "model" else known.own
    return {
        "source": source,
        "people": 0 if pairs is None else pairs.identities,
        "pairs": 0 if pairs is None else pairs.pairs,
        "mean": None if pairs is None else pairs.mean,
        "std": None if pairs is None else pairs.std,
        "left_out_as_trained_on": None if known is None else known.seen,
        "advice": advice,
    }
