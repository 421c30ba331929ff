"""From one version of the model to the next without a moment in which the gallery is away."""

import logging
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from serving.errors import Code, ServingError
from serving.gallery.calibrate import calibrated
from serving.gallery.embedder import Embedder
from serving.gallery.records import GalleryModel, ModelChanged, ModelFacts
from serving.gallery.store import Store

BATCH: Final = 64
PROBE_TOLERANCE: Final = 1e-3
"""Relative difference of the same image's vector on other hardware; other models differ by far."""

Progress = Callable[[int, int], None]
_LOGGER = logging.getLogger(__name__)


class Rebuilt(NamedTuple):
    """`images` were embedded for `version`; `before` answered until then, None if none did."""

    before: str | None
    version: str
    images: int


def first_model(store: Store, embedder: Embedder) -> None:
    """Lets the newest version answer, for a gallery that has none."""
    facts = embedder.facts(embedder.latest())
    model = store.begin(facts)
    check_same(facts, model)
    store.activate(model, instead_of=None, impostors=None)


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


def _build(
    store: Store,
    embedder: Embedder,
    version: str,
    active: GalleryModel | None,
    before: int,
    progress: Progress | None,
) -> int:
    facts = embedder.facts(version)
    model = store.begin(facts)
    check_same(facts, model)
    done = 0
    while missing := store.missing(model, BATCH):
        try:
            vectors = embedder.embed([image.content for image in missing], version=version)
        except ServingError as error:
            if error.code is Code.INVALID_ARGUMENT:
                raise _refused(embedder, version, store, model) from error
            raise
        store.add_vectors(model, [image.image for image in missing], vectors)
        done += len(missing)
        if progress is not None:
            progress(before + done, store.counts().images)
    impostors = calibrated(store, embedder, model)
    if store.activate(model, instead_of=active, impostors=impostors):
        _LOGGER.info("the gallery answers with version %s of the model", version)
    return done


def _refused(embedder: Embedder, version: str, store: Store, model: GalleryModel) -> ServingError:
    """Which image it was."""
    for image in store.missing(model, BATCH):
        try:
            embedder.embed([image.content], version=version)
        except ServingError as error:
            return ServingError(
                error.code,
                f"version {version} of the model refuses an image of {image.name!r} "
                f"({error.message}): remove that name and enrol another image",
            )
    return ServingError(Code.INTERNAL, f"version {version} refuses images in a batch only")


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
    check_same(facts, model)


def check_same(facts: ModelFacts, model: GalleryModel) -> None:
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
