"""What is said of those enrolled, against what becomes of them."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from serving.gallery.gallery import Gallery
from serving.gallery.outlook import Outlook, share_of
from serving.gallery.sqlite.store import SqliteStore
from tests.serving.gallery.conftest import OpenStore
from tests.serving.gallery.fakes import FakeModels, photo

NOISE = 0.62
"""With which some are recognised, and some are not."""
SHOTS = 3
SEVERAL = [f"person {number}" for number in range(12)]
SINGLE = [f"single {number}" for number in range(4)]


def gallery_of(gallery: Gallery, shots: dict[str, list[int]]) -> Gallery:
    gallery.enroll_many(
        [(person, [photo(person, shot) for shot in of_each]) for person, of_each in shots.items()]
    )
    return gallery


def everybody(references: int) -> dict[str, list[int]]:
    return {one: list(range(references)) for one in SEVERAL} | {one: [0] for one in SINGLE}


def test_it_is_what_becomes_of_each_image_where_others_are_enrolled(tmp_path: Path) -> None:
    with Gallery(SqliteStore(tmp_path / "all.db"), FakeModels(noise=NOISE)) as gallery:
        outlook = gallery_of(gallery, everybody(SHOTS)).outlook()
    assert (outlook.identities, outlook.seen) == (12, 0)
    found: Counter[tuple[int, float, str]] = Counter()
    for references, person, shot in itertools.product((1, 2), SEVERAL, range(SHOTS)):
        others = [(shot + 1 + number) % SHOTS for number in range(references)]
        path = tmp_path / f"{references} {person} {shot}.db"
        with Gallery(SqliteStore(path), FakeModels(noise=NOISE)) as gallery:
            gallery_of(gallery, everybody(references) | {person: others})
            for rate in (0.01, 0.05):
                name = gallery.identify(photo(person, shot), false_accept_rate=rate).name
                outcome = {person: "right", None: "unknown"}.get(name, "wrong")
                found[references, rate, outcome] += 1
    assert {(one.references, one.false_accept_rate) for one in outlook.fared} == {
        (references, rate) for references, rate, _ in found
    }
    for one in outlook.fared:
        assert (one.identities, one.images) == (12, 36)
        for outcome in ("right", "unknown", "wrong"):
            share = getattr(one, outcome)
            count = found[one.references, one.false_accept_rate, outcome]
            assert share.value == pytest.approx(count / 36)
            assert share.low - 1e-9 <= share.value <= share.high + 1e-9
    assert 0 < sum(one.unknown.value for one in outlook.fared) < len(outlook.fared)


def test_too_few_with_several_images_are_counted_and_nothing_is_embedded(
    open_one: OpenStore,
) -> None:
    models = FakeModels()
    gallery = gallery_of(Gallery(open_one(), models), {person: [0, 1] for person in SEVERAL[:9]})
    models.embedded.clear()
    assert gallery.outlook() == Outlook((), 9, None)
    assert not models.embedded
    gallery.enroll(SEVERAL[9], [photo(SEVERAL[9], 0), photo(SEVERAL[9], 1)])
    assert [one.references for one in gallery.outlook().fared] == [1, 1]


def test_whom_the_model_was_trained_on_is_not_asked_about(open_one: OpenStore) -> None:
    models = FakeModels(trained_on=[photo(SEVERAL[2], 1)])
    gallery = gallery_of(Gallery(open_one(), models), {person: [0, 1] for person in SEVERAL})
    outlook = gallery.outlook()
    assert (outlook.identities, outlook.seen) == (11, 1)
    assert {(one.identities, one.images) for one in outlook.fared} == {(11, 22)}
    models.seen = None
    assert gallery.outlook().seen is None


def test_an_interval_is_wide_where_images_of_one_stand_or_fall_together() -> None:
    together = share_of(np.repeat([0.0, 1.0], 20), 400)
    apart = share_of(np.full(40, 0.5) + np.tile([0.05, -0.05], 20), 400)
    assert together.value == pytest.approx(0.5)
    # Of 39 images, and of 400.
    assert together.high - together.low == pytest.approx(0.299, abs=0.003)
    assert apart.high - apart.low == pytest.approx(0.098, abs=0.003)
    never = share_of(np.zeros(10), 40)
    assert (never.value, never.low) == (0, 0)
    assert never.high == pytest.approx(0.278, abs=0.001)


def test_what_is_embedded_is_told(open_one: OpenStore) -> None:
    told: list[tuple[int, int]] = []
    gallery = gallery_of(Gallery(open_one(), FakeModels()), everybody(SHOTS))
    gallery.outlook(lambda done, total: told.append((done, total)))
    assert told == [(number, 16) for number in range(1, 17)]
