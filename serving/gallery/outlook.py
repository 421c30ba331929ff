"""Estimates from a gallery's own images how those enrolled will fare with their next ones.

Leave-one-out: each image is asked about while others of its identity stand for it, one or more, and
everybody else is there too. Images of one identity stand or fall together, so intervals are those
of as many independent images as vary as much (Korn & Graubard 1998, Survey Methodology 24:193).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from serving.gallery.embedder import Embedder
from serving.gallery.rebuild import Progress
from serving.gallery.records import GalleryModel, Vectors
from serving.gallery.store import Store
from serving.gallery.threshold import threshold

RATES: Final = (0.01, 0.05)
REFERENCES: Final = (1, 2, 4)
IDENTITIES: Final = 100
"""Of larger galleries so many are asked about, and compared with each other."""
ENOUGH: Final = 10
"""Identities with images to spare, below which nothing is said."""
Z95: Final = 1.959963984540054
Shares = npt.NDArray[np.float64]


class Share(NamedTuple):
    """A share of images, in [0, 1], with its 95 % interval."""

    value: float
    low: float
    high: float


class Fared(NamedTuple):
    """What became of images whose identity had so many references.

    Attributes:
      references: images of each identity, or all that there are of it where they are fewer.
      false_accept_rate: by which it was judged.
      identities: who was asked about.
      images: that were asked about.
      right: given the right name.
      unknown: given none.
      wrong: given another's.
    """

    references: int
    false_accept_rate: float
    identities: int
    images: int
    right: Share
    unknown: Share
    wrong: Share


@dataclass(frozen=True)
class Outlook:
    """How those enrolled fare.

    Attributes:
      fared: for each number of references and each false-accept rate; empty where too few can be
        asked about.
      identities: with two images or more; where there are enough, those of whom the model has seen
        none, of at most `IDENTITIES`.
      seen: left out, because the model was trained on images of them; None where that is not known.
    """

    fared: tuple[Fared, ...]
    identities: int
    seen: int | None


class _Person(NamedTuple):
    vectors: Vectors
    """`[k, D]`."""
    asked: bool


def outlook(
    store: Store,
    embedder: Embedder,
    model: GalleryModel,
    *,
    progress: Progress | None = None,
) -> Outlook:
    """Embeds images of up to `IDENTITIES` identities, those with several first, and asks.

    Args:
      store: has vectors of `model`.
      embedder: of which `model` is a version.
      model: the active one.
      progress: called with the number of identities done and of all.
    """
    version = model.facts.version
    trained_on = embedder.trained_on(version)
    keys = store.scattered(IDENTITIES, several=True)
    # Others are to be mistaken for, if never asked about.
    keys += store.scattered(IDENTITIES - len(keys), several=False)
    people: list[_Person] = []
    seen = 0
    for at, key in enumerate(keys):
        images = store.images(key, limit=max(REFERENCES) + 1)
        known = trained_on is not None and trained_on.any_of(images)
        seen += known and len(images) > 1
        if images:
            people.append(_Person(embedder.embed(images, version=version), not known))
        if progress is not None:
            progress(at + 1, len(keys))
    asked = sum(person.asked and len(person.vectors) > 1 for person in people)
    names = store.counts().names
    fared = []
    for references in REFERENCES:
        for rate in RATES:
            found = _fared(people, model, references=references, rate=rate, names=names)
            fared += [] if found is None else [found]
    return Outlook(tuple(fared), asked, None if trained_on is None else seen)


def _fared(
    people: Sequence[_Person], model: GalleryModel, *, references: int, rate: float, names: int
) -> Fared | None:
    """None where fewer than `ENOUGH` have images to spare."""
    counts = np.array([min(len(person.vectors), references) for person in people])
    asked = [
        at for at, person in enumerate(people) if person.asked and len(person.vectors) > references
    ]
    if len(asked) < ENOUGH:
        return None
    means = np.stack(
        [person.vectors[:count].mean(axis=0) for person, count in zip(people, counts, strict=True)]
    )
    bounds = {
        int(count): threshold(
            model.impostors, false_accept_rate=rate, comparisons=names, images=int(count)
        ).logit
        for count in np.unique(counts)
    }
    outcomes = np.empty((len(asked), 3))
    images = 0
    for row, at in enumerate(asked):
        vectors = people[at].vectors
        logits = model.facts.bias - cdist(vectors, means, "cityblock")
        for query, vector in enumerate(vectors):
            others = vectors[(query + 1 + np.arange(references)) % len(vectors)]
            own = np.abs(others.mean(axis=0) - vector).sum()
            logits[query, at] = model.facts.bias - own
        best = logits.argmax(axis=1)
        bound = np.array([bounds[int(count)] for count in counts[best]])
        named = logits.max(axis=1) > bound
        right = named & (best == at)
        outcomes[row] = right.mean(), (~named).mean(), (named & ~right).mean()
        images += len(vectors)
    shares = (share_of(outcomes[:, column], images) for column in range(3))
    return Fared(references, rate, len(asked), images, *shares)


def share_of(shares: Shares, images: int) -> Share:
    """The mean share and its interval, of the shares `[n]` of each identity's images.

    Args:
      shares: of two identities or more.
      images: of all identities.
    """
    value = float(shares.mean())
    variance = float(shares.var(ddof=1)) / len(shares)
    # Where all are alike, of one image each.
    n = value * (1 - value) / variance if variance > 0 else len(shares)
    n = min(max(n, 1.0), images)
    scale = 1 + Z95**2 / n
    centre = value + Z95**2 / (2 * n)
    spread = Z95 * math.sqrt(value * (1 - value) / n + Z95**2 / (4 * n**2))
    return Share(value, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))
