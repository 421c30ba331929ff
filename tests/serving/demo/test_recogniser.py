"""What the demo answers, without its page."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.client import InvalidImage
from serving.demo.pictures import generated_pictures
from serving.demo.recogniser import Recogniser
from serving.errors import ServingError
from serving.saved_model.contract import EXTRA, MODEL_CARD, Preprocessing
from tests.serving.demo.pixel_model import NEW, OLD, PixelClient, glyph


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder where the newer version is, as far as the demo looks at it."""
    card = tmp_path / "models" / NEW / EXTRA / MODEL_CARD
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps(Preprocessing(16).as_card()))
    return tmp_path / "models"


@pytest.fixture
def recogniser(models: Path, tmp_path: Path) -> Iterator[Recogniser]:
    made = Recogniser(PixelClient(), tmp_path, generated_pictures(), models=models)  # type: ignore[arg-type]
    made.prepare()
    yield made
    made.close()


def who(recogniser: Recogniser, image: bytes, *, version: str = NEW) -> str | None:
    return recogniser.identify(image, version=version, rate=0.05).name


def test_who_is_enrolled_is_known_to_every_version_until_forgotten(recogniser: Recogniser) -> None:
    assert recogniser.versions() == [NEW, OLD]
    image = recogniser.encode(glyph(1))
    assert who(recogniser, image) is None
    recogniser.enroll("Ada", image, version=NEW)
    assert [who(recogniser, image, version=version) for version in (NEW, OLD)] == ["Ada", "Ada"]
    assert recogniser.known["Ada"] == [image]
    recogniser.forget("Ada")
    recogniser.forget("nobody")
    recogniser.forget(None)
    assert [who(recogniser, image, version=version) for version in (NEW, OLD)] == [None, None]
    with pytest.raises(ServingError, match="name"):
        recogniser.enroll("", image, version=NEW)


def test_two_pictures_have_a_score(recogniser: Recogniser) -> None:
    same, other = (recogniser.compare(glyph(1), glyph(number), version=OLD) for number in (1, 2))
    assert 0 <= other < same <= 1


def test_what_the_network_sees_is_told_where_the_version_is_at_hand(recogniser: Recogniser) -> None:
    seen = recogniser.seen(recogniser.encode(glyph(1)), version=NEW)
    assert seen is not None
    assert (seen.shape, seen.dtype) == ((16, 16), np.uint8)
    assert np.median(seen) == 255  # paper
    assert recogniser.seen(glyph(1), version=OLD) is None


def test_an_empty_canvas_is_no_picture(recogniser: Recogniser) -> None:
    with pytest.raises(InvalidImage, match="nothing is drawn"):
        recogniser.encode(Image.new("RGBA", (50, 50), "white"))
