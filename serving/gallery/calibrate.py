"""Where the pairs come from that thresholds rest on."""

from typing import Final

import numpy as np

from serving.gallery.embedder import Embedder
from serving.gallery.impostors import ImpostorPairs, pairs_among
from serving.gallery.records import GalleryModel
from serving.gallery.store import Store
from serving.gallery.threshold import Impostors

SAMPLE: Final = 200
"""Enrolled people whose pairs are looked at: 19,900 of them are enough."""


def calibrated(store: Store, embedder: Embedder, model: GalleryModel) -> Impostors:
    """What `model` makes of pairs of different people.

    Those that came with it, and pairs of the cohort; without a cohort, of those enrolled.

    Args:
      model: may be in building, with all vectors there.
    """
    shipped = embedder.impostors(model.facts.version)
    if not shipped and model.impostors is not None:
        # A server does not tell, but a folder may have before.
        shipped = model.impostors.shipped
    bias = model.facts.bias
    cohort = store.cohort()
    if not cohort:
        enrolled = store.sample(SAMPLE, model=model)
        pairs = pairs_among(enrolled, np.arange(len(enrolled)), bias=bias)
        return Impostors(shipped, ImpostorPairs.of(pairs, source="gallery"))
    groups = {image.group: number for number, image in enumerate(cohort)}
    vectors = embedder.embed([image.content for image in cohort], version=model.facts.version)
    pairs = pairs_among(vectors, [groups[image.group] for image in cohort], bias=bias)
    return Impostors(shipped, ImpostorPairs.of(pairs, source="cohort"))


def worth_renewing(impostors: Impostors | None, *, names: int, growth: float) -> bool:
    """Whether so many names tell more than is known."""
    if impostors is None or impostors.own is None:
        return True
    own = impostors.own
    return own.source == "gallery" and own.people < SAMPLE and names >= growth * own.people
