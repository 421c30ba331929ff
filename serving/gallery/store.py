"""What a gallery needs of a database."""

from collections.abc import Sequence
from typing import Protocol

from serving.gallery.records import (
    CohortImage,
    Counts,
    GalleryModel,
    Hit,
    Identity,
    ModelFacts,
    NewImage,
    Person,
    Template,
    Vectors,
)
from serving.gallery.threshold import Impostors


class Store(Protocol):
    """Identities, images, and vectors by model version. Thread-safe, and shared by processes.

    What a method has done when it returns survives a crash of process or machine. All of them
    raise ServingError with UNAVAILABLE when the database cannot be reached or stays locked, and
    those that take a model raise ModelChanged when its vectors are gone.
    """

    def active(self) -> GalleryModel | None:
        """The version whose vectors answer; None before the first enrolment."""

    def begin(self, facts: ModelFacts) -> GalleryModel:
        """Makes room for vectors of this version, or finds what is there of it already.

        Raises:
          ServingError: FAILED_PRECONDITION: the database cannot hold such vectors, or has vectors
            of another model with the same version number.
        """

    def activate(
        self, model: GalleryModel, *, instead_of: GalleryModel | None, impostors: Impostors | None
    ) -> bool:
        """Lets this version answer from now on; the one before is retired in the same moment.

        Returns:
          False, and nothing has changed, where someone's images are not all in a vector of this
          version, or another version than `instead_of` has become active.
        """

    def drop_retired(self) -> None:
        """Deletes the vectors of versions that do not answer any more."""

    def set_impostors(self, model: GalleryModel, impostors: Impostors | None) -> None: ...

    def add(self, people: Sequence[tuple[str, Sequence[NewImage]]], *, model: GalleryModel) -> int:
        """Enrols images under names, all or none; those that are there already are left alone.

        Returns:
          How many were new.

        Raises:
          ModelChanged: `model` is not the active one.
          ImageTaken: one of them is enrolled under another name.
        """

    def remove(self, name: str) -> int:
        """Deletes a name with its images and its vectors of every version.

        Returns:
          How many images were deleted, 0 if there is no such name.
        """

    def erase(self, *, thorough: bool) -> bool:
        """Makes what was deleted unreadable in the database's files too.

        Args:
          thorough: whether it may take long and keep others waiting.

        Returns:
          Whether that was possible now.
        """

    def nearest(self, query: Vectors, count: int, *, model: GalleryModel) -> list[Hit]:
        """The `count` nearest people, nearest first."""

    def mean_of(self, name: str, *, model: GalleryModel) -> Vectors | None:
        """`[D]`, the mean vector of a name; None if there is no such name."""

    def sample(self, people: int, *, model: GalleryModel) -> Vectors:
        """`[N, D]` mean vectors of up to so many people, the same at each call."""

    def missing(self, model: GalleryModel, *, after: int, limit: int) -> list[Person]:
        """People with images that are not in their vector of this version, in order of keys."""

    def put_templates(self, model: GalleryModel, templates: Sequence[Template]) -> None:
        """Stores vectors of a version that is being built.

        Left out are those of people who are gone, or have got more images since: they are missing
        still.
        """

    def counts(self) -> Counts:
        """Exactly; may take long where many are enrolled."""

    def names(self) -> int:
        """About how many names are enrolled; takes no time."""

    def identities(self, *, after: str, limit: int) -> list[Identity]:
        """Those whose names come after `after` in order of code points."""

    def identity(self, name: str) -> Identity | None: ...

    def cohort(self) -> list[CohortImage]: ...

    def set_cohort(self, images: Sequence[CohortImage]) -> None:
        """Replaces the cohort."""

    def close(self) -> None: ...
