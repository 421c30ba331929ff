"""The store of references that takes the place of retraining."""

from serving.gallery.answers import (
    Candidate,
    Enrolment,
    Identification,
    Removal,
    Status,
    Verification,
)
from serving.gallery.gallery import Gallery
from serving.gallery.location import open_gallery
from serving.gallery.records import CohortImage, Identity

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
