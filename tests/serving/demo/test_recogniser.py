"""What the demo answers, and how it begins, without its page."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serving.client import Client, InvalidImage
from serving.demo.pictures import (
    ENROLLED,
    IMAGES,
    OUTSIDERS,
    Pictures,
    generated_pictures,
    recorded_pictures,
)
from serving.demo.recogniser import Recogniser
from serving.errors import ServingError
from serving.server.models import ModelSetup
from serving.server.server import LocalServer, ServerOptions
from serving.server.versions import HostOptions, Policy
from tests.pair_records import make_pairs, write_records
from tests.serving.demo.untrained import NEW, OLD, glyph


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[Client]:
    setup = {"siamese": ModelSetup(models, HostOptions(policy=Policy(latest=2)))}
    with LocalServer(ServerOptions(setup, grpc_port=None, rest_port=0)) as server:
        assert server.wait_available(120)
        with Client(server.rest_url, timeout=60) as connected:
            for version in (OLD, NEW):
                connected.pinned(version=int(version)).wait_ready()
            yield connected


@pytest.fixture
def recogniser(client: Client, models: Path, tmp_path: Path) -> Iterator[Recogniser]:
    made = Recogniser(client, tmp_path, generated_pictures(), models=models)
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
    assert [who(recogniser, image, version=version) for version in (NEW, OLD)] == [None, None]
    with pytest.raises(ServingError, match="name"):
        recogniser.enroll("", image, version=NEW)


def test_two_pictures_have_a_score(recogniser: Recogniser) -> None:
    same, other = (recogniser.compare(glyph(1), glyph(number), version=OLD) for number in (1, 2))
    assert 0 <= other < same <= 1


def test_what_the_network_sees_is_told_where_the_version_is_at_hand(
    recogniser: Recogniser, client: Client, tmp_path: Path
) -> None:
    seen = recogniser.seen(recogniser.encode(glyph(1)), version=NEW)
    assert seen is not None
    assert (seen.shape, seen.dtype) == ((16, 16), np.uint8)
    assert np.median(seen) == 255  # paper
    elsewhere = Recogniser(client, tmp_path, Pictures({}, {}), models=tmp_path)
    assert elsewhere.seen(glyph(1), version=NEW) is None
    with pytest.raises(InvalidImage, match="nothing is drawn"):
        elsewhere.encode(np.full((50, 50), 255, np.uint8))


def test_recorded_classes_are_enrolled_or_outsiders(tmp_path: Path) -> None:
    pairs = make_pairs(groups=4, classes=30, pairs=1500)
    pairs = [pair._replace(protocol="verification") for pair in pairs]
    other = pairs[0]._replace(class_a="run01/class01", class_b="run01/class02", protocol="official")
    write_records(tmp_path, [other, *pairs])
    pictures = recorded_pictures(tmp_path)
    assert len(pictures.enrolled) == ENROLLED
    assert 50 <= len(pictures.outsiders) <= OUTSIDERS
    assert not pictures.enrolled.keys() & pictures.outsiders.keys()
    assert {name[:7] for name in pictures.enrolled} == {f"group0{number}" for number in range(4)}
    every = [*pictures.enrolled.values(), *pictures.outsiders.values()]
    assert all(1 <= len(images) == len({*images}) <= IMAGES for images in every)


def test_of_two_classes_one_is_enrolled(tmp_path: Path) -> None:
    pairs = make_pairs(groups=1, classes=2, pairs=20)
    write_records(tmp_path, [pair._replace(protocol="verification") for pair in pairs])
    pictures = recorded_pictures(tmp_path)
    assert (len(pictures.enrolled), len(pictures.outsiders)) == (1, 1)
