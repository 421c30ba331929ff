"""Digests of images that a model has seen."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_ingest.sources.images import ImageRejected, stored_form
from data_ingest.sources.kinds import form_of
from serving.client.images import encode_png
from serving.saved_model.contract import EXTRA, MODEL_CARD
from serving.saved_model.trained_on import (
    TRAINED_ON,
    TrainedOn,
    digest_of,
    read_trained_on,
    write_trained_on,
)
from tests.image_variants import variants

CARD = {"kind": "photo", "max_side": 48}
FORM = form_of("photo", 48)


def png(number: int) -> bytes:
    return encode_png(np.random.default_rng(number).integers(0, 255, (9, 9), np.uint8))


IMAGES = [png(number) for number in range(100)]
OTHER = png(100)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    card = tmp_path / EXTRA / MODEL_CARD
    card.parent.mkdir()
    card.write_text(json.dumps(CARD))
    return tmp_path


def test_a_model_tells_the_images_that_it_has_seen_from_others(model: Path) -> None:
    digests = [digest_of(image) for image in [*IMAGES, *IMAGES[:9]]]
    write_trained_on(model, np.array(digests, np.uint64))
    assert (model / TRAINED_ON).stat().st_size == 8 * len(IMAGES)
    seen = read_trained_on(model)
    assert seen is not None
    assert all(seen.any_of([OTHER, image]) for image in IMAGES)
    assert not seen.any_of([OTHER])
    assert not seen.any_of([b"no image"])
    assert not seen.any_of([])


def test_an_image_is_known_as_it_came_and_as_galleries_keep_it() -> None:
    """Ingestion has reduced it."""
    tried = 0
    for variant in variants():
        try:
            stored = stored_form(variant.data, FORM)
        except ImageRejected:
            continue
        tried += 1
        seen = TrainedOn(np.array([digest_of(stored)], np.uint64), FORM)
        assert seen.any_of([variant.data]), variant.name
        if not re.search("orientation|EXIF|eXIf", variant.name):
            assert seen.any_of([stored_form(variant.data)]), variant.name
    assert tried > 100


def test_an_export_that_does_not_say_is_told_from_one_that_is_damaged(model: Path) -> None:
    assert read_trained_on(model) is None
    (model / TRAINED_ON).write_bytes(b"12345")
    with pytest.raises(ValueError, match="middle of a digest"):
        read_trained_on(model)
