"""The store of references that takes the place of retraining."""

from serving.gallery.gallery import Gallery
from serving.gallery.open import open_gallery
from serving.gallery.records import (
    Candidate,
    CohortImage,
    Enrolment,
    Identification,
    Identity,
    Removal,
    Status,
    Verification,
)

__all__ = [
    "Candidate",
    "CohortImage",
    "Enrolment",
    "Gallery",
    "Identification",
    "Identity",
    "Removal",
    "Status",
    "Verification",
    "open_gallery",
]
