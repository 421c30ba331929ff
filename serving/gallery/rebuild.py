"""Moves a gallery from one version of the model to the next while it goes on answering."""

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from serving.client.images import encode_image
from serving.client.types import InvalidImage
from serving.errors import Code, ServingError
from serving.gallery.embedder import Embedder
from serving.gallery.records import (
    CohortImage,
    GalleryModel,
    ModelChanged,
    ModelFacts,
    Template,
    Unembedded,
    Vectors,
)
from serving.gallery.store import Store
from serving.gallery.threshold import Impostors
from serving.saved_model.impostors import ImpostorPairs, lifts, pairs_among
from serving.saved_model.trained_on import TrainedOn

BATCH: Final = 32
"""Identities embedded at a time."""
PROBE_TOLERANCE: Final = 1e-3
"""Relative difference of the same image's vector on other hardware; other models differ by far."""
SAMPLE: Final = 200
"""Enrolled identities whose pairs are looked at: 19,900 of them are enough."""
LOOKED_AT: Final = 3
"""Images of each of them that are looked for among those that the model was trained on."""
GROWTH: Final = 1.25
"""How much a gallery grows before it is calibrated anew on itself."""

Progress = Callable[[int, int], None]
_log = logging.getLogger(__name__)


class Rebuilt(NamedTuple):
    """`images` were embedded for `version`; `before` answered until then, None if none did."""

    before: str | None
    version: str
    images: int


def first_model(store: Store, embedder: Embedder) -> None:
    """Lets the newest version answer, for a gallery that has none."""
    model = _begun(store, embedder, embedder.latest())
    store.activate(model, instead_of=None, impostors=calibrated(store, embedder, model))


def rebuild(store: Store, embedder: Embedder, *, progress: Progress | None = None) -> Rebuilt:
    """Embeds all images with the newest version, batch after batch, then switches.

    Each batch is stored when it is done, so an interrupted rebuild continues. Who is enrolled
    meanwhile, under the old version, is embedded too before the switch; who is removed is gone
    from both.

    Raises:
      ServingError: INVALID_ARGUMENT: the new version refuses an enrolled image (the message names
        it); else as the embedder and the store do. The old version answers on.
    """
    before = store.active()
    version = embedder.latest()
    done = 0
    while True:
        active = store.active()
        try:
            if active is not None and active.facts.version == version:
                same_model(embedder, active)
                break
            done += _build(store, embedder, version, active, done, progress)
        except ModelChanged:
            # Another process rebuilds for another version, or was faster.
            version = embedder.latest()
    store.drop_retired()
    store.erase(thorough=False)
    return Rebuilt(None if before is None else before.facts.version, version, done)


def same_model(embedder: Embedder, model: GalleryModel) -> None:
    """Makes sure that the embedder's version of that name is the model that the gallery has.

    Raises:
      ServingError: FAILED_PRECONDITION: it is another model, or gone.
    """
    try:
        facts = embedder.facts(model.facts.version)
    except ServingError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"the gallery's vectors are of version {model.facts.version} of the model, which is "
            f"not to be had any more ({error.message}): `oneshot gallery rebuild` moves the "
            "gallery to the newest version",
        ) from error
    _check_same(facts, model)


def calibrated(store: Store, embedder: Embedder, model: GalleryModel) -> Impostors:
    """What `model` makes of pairs of different identities.

    Those that came with it, and pairs of the cohort; without a cohort, of those enrolled, whose
    means are alike because they are means: as far as the model brings figures of that, their logits
    are lowered to those of single images. Whom the model was trained on are left out, as far as
    that is known.

    Args:
      model: may be in building, with all vectors there.
    """
    version = model.facts.version
    shipped = embedder.impostors(version)
    if not shipped and model.impostors is not None:
        # A server does not tell, but a folder may have before.
        shipped = model.impostors.shipped
    trained_on = embedder.trained_on(version)
    seen = 0
    of_means = np.zeros(0)
    if cohort := _usable(store.cohort()):
        known = seen_outsiders(cohort, trained_on)
        used = [image for image in cohort if image.group not in known]
        seen = len(known)
        vectors = np.zeros((0, model.facts.dimensions), np.float32)
        if used:
            vectors = embedder.embed([image.content for image in used], version=version)
        identities = np.unique([image.group for image in used], return_inverse=True)[1]
    else:
        keys, images, vectors = store.sample(SAMPLE, model=model)
        of_means = lifts(shipped, images)
        if trained_on is not None:
            looked_at = (store.images(key, limit=LOOKED_AT) for key in keys)
            new = np.array([not trained_on.any_of(contents) for contents in looked_at], bool)
            seen, vectors, of_means = int((~new).sum()), vectors[new], of_means[new]
        identities = np.arange(len(vectors))
    pairs = pairs_among(vectors, identities, bias=model.facts.bias)
    if not cohort:
        lowered = pairs.logits - of_means[pairs.first] - of_means[pairs.second]
        pairs = pairs._replace(logits=lowered.astype(np.float32))
    own = ImpostorPairs.of(pairs, source="cohort" if cohort else "gallery")
    return Impostors(shipped, own, None if trained_on is None else seen)


def seen_outsiders(cohort: Sequence[CohortImage], trained_on: TrainedOn | None) -> set[str]:
    """The outsiders (`group`) of whom the model has seen an image, as far as that is known."""
    if trained_on is None:
        return set()
    return {image.group for image in cohort if trained_on.any_of([image.content])}


def worth_renewing(impostors: Impostors | None, *, names: int) -> bool:
    """Whether so many names tell more than is known."""
    if impostors is None:
        return True
    own, seen = impostors.own, impostors.seen or 0
    if own is not None and own.source != "gallery":
        return False
    looked_at = seen + (0 if own is None else own.identities)
    return looked_at < SAMPLE and names >= GROWTH * looked_at


def _begun(store: Store, embedder: Embedder, version: str) -> GalleryModel:
    """The version's place in the store."""
    facts = embedder.facts(version)
    model = store.begin(facts)
    _check_same(facts, model)
    return model


def _build(
    store: Store,
    embedder: Embedder,
    version: str,
    active: GalleryModel | None,
    before: int,
    progress: Progress | None,
) -> int:
    """Embeds what is missing and switches; gives how many images that were."""
    model = _begun(store, embedder, version)
    done = 0
    after = 0
    while True:
        identities = store.missing(model, after=after, limit=BATCH)
        if not identities:
            if after == 0:
                break
            # Once more from the beginning: some may have got more images meanwhile.
            after = 0
            continue
        try:
            vectors = iter(_embedded(embedder, version, identities))
        except ServingError as error:
            if error.code is Code.INVALID_ARGUMENT:
                raise _refused(embedder, version, identities) from error
            raise
        templates = []
        for identity in identities:
            count = len(identity.images)
            mean = np.mean(list(itertools.islice(vectors, count)), axis=0, dtype=np.float64)
            templates.append(Template(identity.key, count, np.asarray(mean, np.float32)))
        store.put_templates(model, templates)
        after = identities[-1].key
        done += sum(template.images for template in templates)
        if progress is not None:
            progress(before + done, store.counts().images)
    impostors = calibrated(store, embedder, model)
    if store.activate(model, instead_of=active, impostors=impostors):
        _log.info("the gallery answers with version %s of the model", version)
    return done


def _embedded(embedder: Embedder, version: str, identities: Sequence[Unembedded]) -> Vectors:
    """`[N, D]` vectors of all their images."""
    # Earlier releases stored images as they were given.
    images = [encode_image(image) for identity in identities for image in identity.images]
    return embedder.embed(images, version=version)


def _usable(cohort: Sequence[CohortImage]) -> list[CohortImage]:
    """Those that every version can embed; earlier releases stored others, too."""
    usable = []
    for image in cohort:
        try:
            usable.append(CohortImage(image.group, encode_image(image.content)))
        except InvalidImage as error:
            _log.warning("an image of outsider %s is left out: %s", image.group, error.message)
    return usable


def _refused(embedder: Embedder, version: str, identities: Sequence[Unembedded]) -> ServingError:
    """Whose image it was."""
    for identity in identities:
        try:
            _embedded(embedder, version, [identity])
        except ServingError as error:
            return ServingError(
                error.code,
                f"version {version} of the model refuses an image of {identity.name!r} "
                f"({error.message}): remove that name and enrol another image",
            )
    return ServingError(Code.INTERNAL, f"version {version} refuses images in a batch only")


def _check_same(facts: ModelFacts, model: GalleryModel) -> None:
    """As `same_model`, for facts at hand."""
    stored = model.facts
    if stored.dimensions == facts.dimensions:
        scale = float(np.abs(stored.probe).sum()) or 1.0
        if float(np.abs(stored.probe - facts.probe).sum()) <= PROBE_TOLERANCE * scale:
            return
    raise ServingError(
        Code.FAILED_PRECONDITION,
        f"the gallery has vectors of another model that was called version {stored.version} too; "
        "vectors of two models cannot be compared. Push the model under a new version number, "
        "then `oneshot gallery rebuild`",
    )
