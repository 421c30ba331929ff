"""Where the logits of impostor pairs come from."""

from typing import Final

import numpy as np

from serving.gallery.embedder import Embedder
from serving.gallery.records import GalleryModel
from serving.gallery.store import Store
from serving.gallery.threshold import SAMPLE, Impostors, impostor_logits

MIN_PEOPLE: Final = 5


def calibrated(store: Store, embedder: Embedder, model: GalleryModel) -> Impostors | None:
    """What `model` makes of pairs of different people.

    With a cohort: its members among each other, and each of them with those enrolled. Without:
    pairs of those enrolled.

    Args:
      model: may be in building, with all vectors there.
    """
    enrolled = store.sample(SAMPLE, model=model)
    bias = model.facts.bias
    cohort = store.cohort()
    if not cohort:
        if len(enrolled) < MIN_PEOPLE:
            return None
        logits = impostor_logits(enrolled, np.arange(len(enrolled)), bias=bias)
        return Impostors.of(logits, source="gallery", people=len(enrolled))
    groups = {image.group: -1 - at for at, image in enumerate(cohort)}
    vectors = embedder.embed([image.content for image in cohort], version=model.facts.version)
    among = impostor_logits(vectors, [groups[image.group] for image in cohort], bias=bias)
    across = [bias - np.abs(enrolled - vector).sum(axis=1) for vector in vectors]
    return Impostors.of(np.concatenate([among, *across]), source="cohort", people=len(groups))
