"""Recognises identities by references that were enrolled, which takes the place of retraining.

`Gallery` (`gallery`) joins an `Embedder`, which turns images into vectors, with a `Store`, which
SQLite and PostgreSQL fill in, and asks `threshold` from which logit on an answer is believed.
`rebuild` moves it to a newer version of the model, `http` serves it, `open` finds the database.
"""

from serving.gallery.gallery import Gallery
from serving.gallery.open import open_gallery
from serving.gallery.records import (
    AlreadyEnrolled,
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
    "AlreadyEnrolled",
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
