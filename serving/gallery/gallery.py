"""Recognises identities by one image of each, without training."""

import functools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
from scipy.special import expit

from data_ingest.sources.kinds import Crop
from serving.client.images import encode_image, encode_images
from serving.errors import Code, ServingError, invalid
from serving.gallery.arguments import MAX_IMAGES, checked_name, checked_rate, usable_enrolment
from serving.gallery.embedder import Embedder
from serving.gallery.outlook import ENOUGH, Outlook, outlook
from serving.gallery.rebuild import (
    Progress,
    Rebuilt,
    calibrated,
    first_model,
    rebuild,
    same_model,
    seen_outsiders,
    worth_renewing,
)
from serving.gallery.records import (
    Candidate,
    CohortImage,
    Enrolment,
    GalleryModel,
    Identification,
    Identity,
    ModelChanged,
    Removal,
    Status,
    Vectors,
    Verification,
)
from serving.gallery.store import Store
from serving.gallery.threshold import least_rate, threshold

FALSE_ACCEPT_RATE: Final = 0.01
MAX_COHORT: Final = 1000
TRIES: Final = 5

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Gallery:
    """Identities (people, signatures, parts, plants) by name. Thread-safe.

    An identity has one or more images, used together: a query is compared with the mean of their
    vectors, `logit = b0 - ||v - mean_i v_i||` in Manhattan distance. So one vector an identity and
    one nearest-neighbour search answer however many images there are.

    Images are files of any kind that `encode_image` takes. What is kept and embedded is what it
    makes of them: the image as it looks.

    Example:
      with open_gallery("output/gallery.db", FolderEmbedder(models)) as gallery:
          gallery.enroll("Ada", [png])
          gallery.identify(other_png).name
    """

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        *,
        false_accept_rate: float = FALSE_ACCEPT_RATE,
        crop: Crop | None = None,
    ) -> None:
        """Takes over store and embedder: `close` closes them.

        Args:
          store: where it is kept.
          embedder: what makes vectors.
          false_accept_rate: chance, in (0, 0.5], that `identify` gives an image of someone who is
            not enrolled a name, or `verify` takes it for the identity named.
          crop: see `crop`.

        Raises:
          ServingError: FAILED_PRECONDITION: the gallery holds whole images, and no crops.
        """
        self._store = store
        self._embedder = embedder
        self._rate = checked_rate(false_accept_rate)
        self._asked_crop = crop
        if crop is not None and self.crop is None:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f"the gallery holds whole images, which a {crop} is not to be compared with: begin "
                "a gallery of its own with this crop, and enrol them there",
            )
        self._same: set[int] = set()
        self._calibrating = threading.Lock()

    @property
    def crop(self) -> Crop | None:
        """What is cut out of every image that is enrolled or asked about; None: it stays whole.

        The gallery remembers what it began with: that asked for, else what its first model was
        trained with, as far as that is known.
        """
        if self._store.active() is not None:
            return self._store.crop()
        if self._asked_crop is not None:
            return self._asked_crop
        try:
            return self._embedder.crop(self._embedder.latest())
        except ServingError:  # who needs the model will say so
            return None

    def enroll(self, name: str, images: Sequence[bytes]) -> Enrolment:
        """Enrols images under a name, new or known; all of them or none.

        Doing it again changes nothing. When it returns it is on the disk.

        Raises:
          AlreadyEnrolled: an image is enrolled under another name.
          ServingError: INVALID_ARGUMENT: an unusable name or image, such as one on which nothing
            is drawn; UNAVAILABLE: no model or no database at the moment.
        """
        enrolment = usable_enrolment(name, images, crop=self.crop)
        added = self._enroll([enrolment])
        name, usable = enrolment
        return Enrolment(name, added, len({*usable}) - added)

    def enroll_many(self, enrolments: Iterable[tuple[str, Sequence[bytes]]]) -> int:
        """Enrols several names in one transaction: much faster for many of them.

        Returns:
          How many images were new.

        Raises:
          ServingError: as for `enroll`; then none is enrolled.
        """
        crop = self.crop
        return self._enroll(
            [usable_enrolment(name, images, crop=crop) for name, images in enrolments]
        )

    def _enroll(self, named: Sequence[tuple[str, Sequence[bytes]]]) -> int:
        def enrolled(model: GalleryModel) -> int:
            flat = [image for _, images in named for image in images]
            vectors = iter(self._embed(flat, model))
            return self._store.add(
                [(name, [(image, next(vectors)) for image in images]) for name, images in named],
                model=model,
            )

        added = self._with_model(enrolled, first=True)
        if added:
            self._calibrate_if_grown()
        return added

    def identify(
        self, image: bytes, *, limit: int = 5, false_accept_rate: float | None = None
    ) -> Identification:
        """Whom an image shows, and the most alike identities.

        Args:
          image: a file's bytes.
          limit: how many candidates to name.
          false_accept_rate: instead of the gallery's.

        Raises:
          ServingError: INVALID_ARGUMENT: the image is refused; FAILED_PRECONDITION: nobody is
            enrolled yet, or the gallery's model is gone and a rebuild is due.
        """
        rate = self._rate_asked(false_accept_rate, limit=limit)
        return self._identify([encode_image(image, crop=self.crop)], limit, rate)[0]

    def identify_many(
        self, images: Sequence[bytes], *, limit: int = 5, false_accept_rate: float | None = None
    ) -> list[Identification]:
        """As `identify` for each of the images, which are embedded together.

        Raises:
          ServingError: as for `identify`; then of none is told whom it shows.
        """
        rate = self._rate_asked(false_accept_rate, limit=limit)
        if not images:
            return []
        return self._identify(list(encode_images(images, crop=self.crop)), limit, rate)

    def _rate_asked(self, rate: float | None, *, limit: int = 1) -> float:
        if not 1 <= limit <= MAX_IMAGES:
            raise invalid(f"limit is 1 to {MAX_IMAGES}, not {limit}")
        return self._rate if rate is None else checked_rate(rate)

    def _identify(self, usable: Sequence[bytes], limit: int, rate: float) -> list[Identification]:
        def identified(model: GalleryModel) -> list[Identification]:
            vectors = self._embed(usable, model)
            return [self._identified(vector, model, limit, rate) for vector in vectors]

        return self._with_model(identified)

    def _identified(
        self, vector: Vectors, model: GalleryModel, limit: int, rate: float
    ) -> Identification:
        bias = model.facts.bias
        candidates = [
            Candidate(name, float(expit(bias - distance)), bias - distance)
            for name, distance in self._store.nearest(vector, limit, model=model)
        ]
        best = candidates[0] if candidates else None
        bound = self._bound(best, model, rate=rate, comparisons=self._store.names())
        return Identification(
            best.name if best is not None and best.logit > bound else None,
            tuple(candidates),
            bound,
            model.facts.version,
        )

    def verify(
        self, name: str, image: bytes, *, false_accept_rate: float | None = None
    ) -> Verification:
        """Whether an image shows the identity of that name.

        Raises:
          ServingError: NOT_FOUND: nobody of that name is enrolled; else as for `identify`.
        """
        name = checked_name(name)
        rate = self._rate_asked(false_accept_rate)
        usable = encode_image(image, crop=self.crop)

        def verified(model: GalleryModel) -> Verification:
            mean = self._store.mean_of(name, model=model)
            if mean is None:
                raise ServingError(Code.NOT_FOUND, f"nobody is enrolled as {name!r}")
            vector = self._embed([usable], model)[0]
            logit = model.facts.bias - float(np.abs(mean - vector).sum())
            images = self._images_of(name)
            bound = threshold(
                model.impostors, false_accept_rate=rate, comparisons=1, images=images
            ).logit
            return Verification(
                name,
                logit > bound,
                logit,
                bound,
                rate,
                least_rate(model.impostors, logit, images=images),
                model.facts.version,
            )

        return self._with_model(verified)

    def remove(self, name: str) -> Removal:
        """Forgets a name: its images, their digests and their vectors of every model version."""
        name = checked_name(name)
        images = self._store.remove(name)
        return Removal(name, images, erased=self._store.erase(thorough=False))

    def erase(self) -> bool:
        """Clears the database's files of what was removed.

        SQLite's are clear after each removal already, unless another process was reading.
        PostgreSQL's are written anew (VACUUM FULL), and everybody else waits.

        Returns:
          Whether nothing is left in the tables' files. PostgreSQL's write-ahead log and backups
          keep what they hold until they are recycled.
        """
        return self._store.erase(thorough=True)

    def identities(self, *, after: str = "", limit: int = 1000) -> list[Identity]:
        """Who is enrolled, in order of names, those after `after`."""
        return self._store.identities(after=after, limit=limit)

    def namesakes(self, name: str) -> list[str]:
        """Other names enrolled that differ in nothing but upper and lower case.

        They are identities of their own. This looks at every name.
        """
        return self._store.namesakes(checked_name(name))

    def identity(self, name: str) -> Identity:
        """What is enrolled under a name.

        Raises:
          ServingError: NOT_FOUND.
        """
        found = self._store.identity(checked_name(name))
        if found is None:
            raise ServingError(Code.NOT_FOUND, f"nobody is enrolled as {name!r}")
        return found

    def calibrate(self, cohort: Sequence[CohortImage] | None = None) -> Status:
        """Learns how alike different identities look to the model, for the thresholds.

        A model that the pipeline pushed brings such figures, of identities held out of its
        training. Better ones are those of outsiders like the ones that will come.

        Args:
          cohort: images of outsiders, who are not enrolled, the more like those to be turned away
            the better; they are kept, for rebuilds, without those that the model was trained on, as
            far as that is known (`Impostors.seen`). None calibrates on the cohort that is there,
            else on pairs of different names in the gallery, which it otherwise does by itself as
            it grows.

        Returns:
          By what it judges now; `threshold.advice` says whether that is enough.

        Raises:
          ServingError: INVALID_ARGUMENT: an image is refused, they are too many, or the model was
            trained on all outsiders.
        """
        if cohort is not None and not 1 <= len(cohort) <= MAX_COHORT:
            raise invalid(f"a cohort has 1 to {MAX_COHORT} images, not {len(cohort)}")

        def learned(model: GalleryModel) -> None:
            seen = 0 if cohort is None else self._set_cohort(cohort, model)
            known = calibrated(self._store, self._embedder, model)
            if seen:
                known = replace(known, seen=seen + (known.seen or 0))
            self._store.set_impostors(model, known)

        self._with_model(learned, first=True)
        return self.status()

    def _set_cohort(self, cohort: Sequence[CohortImage], model: GalleryModel) -> int:
        """Keeps those whom the model has not seen; gives how many it has."""
        version = model.facts.version
        crop = self.crop
        contents = [image.content for image in cohort]
        encoded = list(encode_images(contents, name="cohort image", crop=crop))
        if crop is not None:
            groups = [image.group for image in cohort]
            cohort = [CohortImage(*one) for one in zip(groups, encoded, strict=True)]
        # As they came, which is surer than in the form in which they are kept; or their crops.
        seen = seen_outsiders(cohort, self._embedder.trained_on(version))
        kept = [
            CohortImage(image.group, content)
            for image, content in zip(cohort, encoded, strict=True)
            if image.group not in seen
        ]
        if not kept:
            raise invalid(
                f"the model (version {version}) was trained on images of all of these outsiders, "
                "and tells them apart better than it does strangers: a threshold by them would "
                "let in more than asked for. Give images of others"
            )
        # Before they are stored: a refused image must not stay in the way of rebuilds.
        self._embedder.embed([image.content for image in kept], version=version)
        self._store.set_cohort(kept)
        return len(seen)

    def rebuild(self, progress: Progress | None = None) -> Rebuilt:
        """Embeds every image with the newest version of the model, then switches to it at once.

        Until then the old version answers. Interrupted, it continues where it was.

        Args:
          progress: called with the number of images done and of all.
        """
        return rebuild(self._store, self._embedder, progress=progress)

    def status(self) -> Status:
        """What it holds, and by what it judges."""
        counts = self._store.counts()
        model = self._store.active()
        try:
            latest: str | None = self._embedder.latest()
        except ServingError:
            latest = None
        version = None if model is None else model.facts.version
        known = None if model is None else model.impostors
        bound = threshold(known, false_accept_rate=self._rate, comparisons=counts.names)
        return Status(counts, version, latest, self._rate, bound, known)

    def outlook(self, progress: Progress | None = None) -> Outlook:
        """How those enrolled would fare with their next images, by the images that there are.

        This embeds up to five images of each of a hundred identities.

        Args:
          progress: called with the number of identities done and of all.

        Raises:
          ServingError: the model is not to be had.
        """
        several = self._store.scattered(ENOUGH, several=True)
        if len(several) < ENOUGH:
            return Outlook((), len(several), None)
        return self._with_model(
            lambda model: outlook(self._store, self._embedder, model, progress=progress)
        )

    def close(self) -> None:
        """Closes database and model."""
        self._store.close()
        self._embedder.close()

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _with_model(self, action: Callable[[GalleryModel], T], *, first: bool = False) -> T:
        """Does what needs the active version, again if another becomes active meanwhile."""
        for _ in range(TRIES):
            model = self._store.active()
            if model is None:
                if not first:
                    raise ServingError(Code.FAILED_PRECONDITION, "nobody is enrolled yet")
                if (crop := self.crop) is not None:
                    self._store.set_crop(crop)
                first_model(self._store, self._embedder)
                continue
            try:
                if model.key not in self._same:
                    same_model(self._embedder, model)
                    self._same.add(model.key)
                return action(model)
            except ModelChanged:
                continue
        raise ServingError(Code.UNAVAILABLE, "the gallery's model keeps changing: try again")

    def _embed(self, images: Sequence[bytes], model: GalleryModel) -> Vectors:
        vectors = self._embedder.embed(images, version=model.facts.version)
        if not np.isfinite(vectors).all():
            raise ServingError(Code.INTERNAL, "the model gives vectors that are not numbers")
        return vectors

    def _bound(
        self, best: Candidate | None, model: GalleryModel, *, rate: float, comparisons: int
    ) -> float:
        """The logit above which the best candidate is believed."""
        bound = functools.partial(
            threshold, model.impostors, false_accept_rate=rate, comparisons=comparisons
        )
        single = bound().logit
        if best is None or best.logit <= single:
            # More images never lower it, so there is no need to ask for their number.
            return single
        return bound(images=self._images_of(best.name)).logit

    def _images_of(self, name: str) -> int:
        """How many images of a name there are; 1 where it is gone."""
        identity = self._store.identity(name)
        return 1 if identity is None else max(len(identity.images), 1)

    def _calibrate_if_grown(self) -> None:
        model = self._store.active()
        known = None if model is None else model.impostors
        if not worth_renewing(known, names=self._store.names()):
            return
        # One at a time; the others need not wait.
        if self._calibrating.acquire(blocking=False):
            try:
                self.calibrate()
            except ServingError as error:
                # The enrolment is done, and must not look as if it were not.
                _log.warning("the gallery could not be calibrated: %s", error)
            finally:
                self._calibrating.release()
