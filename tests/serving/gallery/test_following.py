"""Rebuilding in the background, on request or when there is a newer model."""

import time

import pytest

from serving.gallery.gallery import Gallery
from serving.gallery.http import Follower
from tests.serving.gallery.conftest import OpenStore
from tests.serving.gallery.fakes import FakeModels, photo

PEOPLE = [f"person {number}" for number in range(20)]


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
def gallery(open_one: OpenStore, models: FakeModels) -> Gallery:
    made = Gallery(open_one(), models)
    made.enroll_many([(person, [photo(person)]) for person in PEOPLE])
    return made


def test_a_follower_rebuilds_when_a_newer_model_appears(
    gallery: Gallery, models: FakeModels
) -> None:
    follower = Follower(gallery, every_seconds=0.01)
    try:
        models.newest = "2"
        deadline = time.monotonic() + 60
        while gallery.status().model_version != "2" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gallery.identify(photo(PEOPLE[0], 1)).model_version == "2"
    finally:
        follower.close()


def test_a_failed_rebuild_is_told_and_the_next_one_succeeds(
    gallery: Gallery, models: FakeModels
) -> None:
    follower = Follower(gallery)

    def wait() -> None:
        deadline = time.monotonic() + 60
        while follower.state.state == "running" and time.monotonic() < deadline:
            time.sleep(0.01)

    try:
        models.newest = "2"
        models.available = {"1"}
        follower.rebuild()
        wait()
        assert follower.state.state == "failed"
        assert "version 2 is not loaded" in follower.state.error
        models.available = {"1", "2"}
        follower.rebuild()
        wait()
        assert follower.state.state == "idle"
        assert gallery.status().model_version == "2"
    finally:
        follower.close()
