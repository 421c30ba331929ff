"""From one model to the next: vectors of two versions never meet, and nobody waits."""

import itertools
import threading
import time
from collections.abc import Sequence

import pytest

from data_ingest.sources.images import stored_form
from serving.errors import Code, ServingError
from serving.gallery import rebuild as rebuild_module
from serving.gallery.gallery import Gallery
from serving.gallery.records import CohortImage, Vectors
from tests.image_variants import variants
from tests.serving.gallery.conftest import OpenStore
from tests.serving.gallery.fakes import BIAS, FakeModels, photo, text_of

PEOPLE = [f"person {number}" for number in range(20)]


class Interrupted(Exception):
    """The process ends here."""


class Watched(FakeModels):
    """Calls `during` with the number of images embedded for version 2 so far."""

    def __init__(self) -> None:
        super().__init__()
        self.done = 0

    def during(self, done: int) -> None: ...

    def embed(self, images: Sequence[bytes], *, version: str) -> Vectors:
        vectors = super().embed(images, version=version)
        if version == "2" and text_of(images[0]).startswith(b"photo"):
            self.done += len(images)
            self.during(self.done)
        return vectors


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(rebuild_module, "BATCH", 4)
    return Watched()


@pytest.fixture
def gallery(open_one: OpenStore, models: Watched) -> Gallery:
    made = Gallery(open_one(), models)
    made.enroll_many([(person, [photo(person)]) for person in PEOPLE])
    return made


def test_after_a_rebuild_the_new_version_answers_and_the_old_is_gone(
    gallery: Gallery, models: Watched
) -> None:
    models.newest = "2"
    progress: list[tuple[int, int]] = []
    assert gallery.rebuild(lambda *done: progress.append(done)) == ("1", "2", 20)
    assert progress == [(done, 20) for done in range(4, 24, 4)]
    models.available = {"2"}
    for person in PEOPLE:
        found = gallery.identify(photo(person, 1))
        assert (found.name, found.model_version) == (person, "2")
    assert gallery.status().impostors is not None
    assert gallery.rebuild() == ("2", "2", 0)


def test_the_old_version_answers_until_the_switch(gallery: Gallery, models: Watched) -> None:
    answers = []

    def ask(_: int) -> None:
        found = gallery.identify(photo(PEOPLE[7], 1))
        answers.append((found.name, found.model_version))

    models.during = ask  # type: ignore[method-assign]
    models.newest = "2"
    gallery.rebuild()
    models.during = lambda done: None  # type: ignore[method-assign]
    assert answers == [(PEOPLE[7], "1")] * 5
    assert gallery.identify(photo(PEOPLE[7], 1)).model_version == "2"


def test_a_stream_of_questions_never_meets_vectors_of_another_version(
    open_one: OpenStore, gallery: Gallery, models: Watched
) -> None:
    """Between versions everybody is a stranger: a wrong name, or a version again, would tell."""
    other = Gallery(open_one(), FakeModels())
    streams: list[list[tuple[str, str | None, str]]] = [[], []]
    failures: list[BaseException] = []
    switched = threading.Event()

    def ask(asked: Gallery, answers: list[tuple[str, str | None, str]]) -> None:
        try:
            for number in itertools.count():
                last = switched.is_set()
                person = PEOPLE[number % len(PEOPLE)]
                found = asked.identify(photo(person, 1 + number))
                answers.append((person, found.name, found.model_version))
                if last:
                    return
        except BaseException as error:
            failures.append(error)

    def wait_for_more(*_: int) -> None:
        """So that questions are answered after every batch."""
        enough = [len(answers) + 2 for answers in streams]
        deadline = time.monotonic() + 60
        while not failures and any(
            len(answers) < count for answers, count in zip(streams, enough, strict=True)
        ):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    threads = [
        threading.Thread(target=ask, args=pair)
        for pair in zip([gallery, other], streams, strict=True)
    ]
    for thread in threads:
        thread.start()
    models.newest = "2"
    try:
        gallery.rebuild(wait_for_more)
    finally:
        switched.set()
        for thread in threads:
            thread.join()
    assert not failures
    for answers in streams:
        assert [answer for answer in answers if answer[0] != answer[1]] == []
        versions = [version for _, _, version in answers]
        assert versions == sorted(versions)
        assert versions.count("1") >= 10
        assert versions[-1] == "2"


def test_an_interrupted_rebuild_goes_on_where_it_was(
    open_one: OpenStore, gallery: Gallery, models: Watched
) -> None:
    def interrupt(done: int) -> None:
        if done == 12:
            raise Interrupted

    models.during = interrupt  # type: ignore[method-assign]
    models.newest = "2"
    with pytest.raises(Interrupted):
        gallery.rebuild()
    assert gallery.identify(photo(PEOPLE[0], 1)).model_version == "1"
    later = FakeModels(latest="2")
    assert Gallery(open_one(), later).rebuild() == ("1", "2", 12)
    assert gallery.identify(photo(PEOPLE[0], 1)).model_version == "2"


def test_who_comes_and_goes_during_a_rebuild_has_come_and_gone_after_it(
    open_one: OpenStore, gallery: Gallery, models: Watched
) -> None:
    elsewhere = Gallery(open_one(), FakeModels())

    def change(done: int) -> None:
        if done == 8:
            elsewhere.enroll("late", [photo("late")])
            elsewhere.remove(PEOPLE[0])  # embedded already
            elsewhere.remove(PEOPLE[6])  # embedded, not stored yet
            elsewhere.remove(PEOPLE[19])  # not embedded yet
        if done == 20:
            elsewhere.enroll("last", [photo("last")])

    models.during = change  # type: ignore[method-assign]
    models.newest = "2"
    gallery.rebuild()
    gone = {PEOPLE[0], PEOPLE[6], PEOPLE[19]}
    for person in [*PEOPLE, "late", "last"]:
        found = gallery.identify(photo(person, 1), limit=50)
        assert found.model_version == "2"
        assert found.name == (None if person in gone else person)
        assert not gone & {candidate.name for candidate in found.candidates}
    assert gallery.status().counts == (19, 19)


def test_questions_and_enrolments_that_meet_the_switch_are_asked_again(
    open_one: OpenStore, gallery: Gallery, models: Watched
) -> None:
    """The gallery moves to version 2 between the embedding of an image and the search for it."""
    rebuilder = Gallery(open_one(), FakeModels(latest="2"))
    original = models.embed
    switched: list[str] = []

    def embed(images: Sequence[bytes], *, version: str) -> Vectors:
        vectors = original(images, version=version)
        if text_of(images[0]).startswith(b"photo") and not switched:
            switched.append(rebuilder.rebuild().version)
        return vectors

    models.embed = embed  # type: ignore[method-assign]
    found = gallery.identify(photo(PEOPLE[3], 1))
    assert (found.name, found.model_version, switched) == (PEOPLE[3], "2", ["2"])

    back = Gallery(open_one(), FakeModels(latest="3"))
    switched.clear()
    rebuilder = back
    gallery.enroll("new", [photo("new")])
    assert switched == ["3"]
    assert gallery.identify(photo("new", 1))[0] == "new"
    assert gallery.identify(photo("new", 1)).model_version == "3"


def test_removal_right_after_a_switch_works(gallery: Gallery, models: Watched) -> None:
    assert gallery.identify(photo(PEOPLE[0], 1)).name == PEOPLE[0]
    models.newest = "2"
    gallery.rebuild()
    assert gallery.remove(PEOPLE[0]).images == 1
    assert gallery.identify(photo(PEOPLE[0], 1)).name is None


def test_going_back_to_an_older_version_is_a_rebuild_too(gallery: Gallery, models: Watched) -> None:
    models.newest = "2"
    gallery.rebuild()
    models.newest = "1"
    assert gallery.rebuild() == ("2", "1", 20)
    assert gallery.identify(photo(PEOPLE[0], 1)).name == PEOPLE[0]


def test_a_version_given_up_half_way_leaves_nothing_behind(
    gallery: Gallery, models: Watched
) -> None:
    def interrupt(done: int) -> None:
        raise Interrupted

    models.during = interrupt  # type: ignore[method-assign]
    models.newest = "2"
    with pytest.raises(Interrupted):
        gallery.rebuild()
    models.newest = "3"
    assert gallery.rebuild() == ("1", "3", 20)
    models.during = lambda done: None  # type: ignore[method-assign]
    models.newest = "2"
    assert gallery.rebuild() == ("3", "2", 20)


def test_an_image_that_the_new_version_refuses_is_named(gallery: Gallery, models: Watched) -> None:
    original = models._vector

    def stricter(image: bytes, version: str) -> Vectors:
        if version == "2" and image == photo(PEOPLE[5]):
            raise ServingError(Code.INVALID_ARGUMENT, "image refused")
        return original(image, version)

    models._vector = stricter  # type: ignore[method-assign]
    models.newest = "2"
    with pytest.raises(ServingError, match="image of 'person 5'"):
        gallery.rebuild()
    assert gallery.identify(photo(PEOPLE[5], 1)).model_version == "1"
    gallery.remove(PEOPLE[5])
    assert gallery.rebuild().version == "2"


def test_what_earlier_releases_stored_as_it_was_given_is_embedded_as_it_looks(
    gallery: Gallery, models: Watched
) -> None:
    looks = {variant.name: variant.data for variant in variants()}
    turned, blank = looks["jpeg orientation 6 big-endian"], looks["png white (blank)"]
    outsiders = [CohortImage(f"o{number}", photo(f"o{number}")) for number in range(12)]
    store, active = gallery._store, gallery._store.active()
    assert active is not None
    store.set_cohort([*outsiders, CohortImage("blank", blank)])
    store.add([("Ada", [(turned, active.facts.probe)])], model=active)
    models.newest = "2"
    gallery.rebuild()
    gallery.enroll("Ada's twin", [photo("Ada's twin")])
    assert gallery.identify(turned).name == "Ada"
    assert gallery.verify("Ada", stored_form(turned)).logit == pytest.approx(BIAS, abs=1e-3)
    impostors = gallery.status().impostors
    assert impostors is not None
    assert impostors.own is not None
    assert (impostors.own.source, impostors.own.identities) == ("cohort", 12)
    active = store.active()
    assert active is not None
    store.add([("Nobody", [(blank, active.facts.probe)])], model=active)
    models.newest = "3"
    with pytest.raises(ServingError, match=r"image of 'Nobody' \(nothing is drawn on it"):
        gallery.rebuild()
    assert gallery.identify(turned).model_version == "2"


def test_a_cohort_moves_to_the_new_version_with_the_gallery(
    gallery: Gallery, models: Watched
) -> None:
    gallery.calibrate([CohortImage(f"o{number}", photo(f"o{number}")) for number in range(12)])
    before = gallery.status().impostors
    models.newest = "2"
    gallery.rebuild()
    after = gallery.status().impostors
    assert before is not None
    assert after is not None
    assert before.own is not None
    assert after.own is not None
    assert (after.own.source, after.own.pairs) == ("cohort", before.own.pairs)
    assert after.own.mean != before.own.mean
    # What came with the model is the new version's too.
    assert after.shipped != before.shipped


def test_a_gallery_whose_model_is_gone_says_what_to_do(gallery: Gallery, models: Watched) -> None:
    models.available = {"2"}
    models.newest = "2"
    fresh = Gallery(gallery._store, models)
    with pytest.raises(ServingError, match="oneshot gallery rebuild") as error:
        fresh.identify(photo(PEOPLE[0]))
    assert error.value.code is Code.FAILED_PRECONDITION
    fresh.rebuild()
    assert fresh.identify(photo(PEOPLE[0], 1)).name == PEOPLE[0]


def test_two_rebuilds_at_once_do_no_harm(open_one: OpenStore, gallery: Gallery) -> None:
    galleries = [Gallery(open_one(), FakeModels(latest="2")) for _ in range(2)]
    failures: list[BaseException] = []

    def run(one: Gallery) -> None:
        try:
            one.rebuild()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=[one]) for one in galleries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for person in PEOPLE:
        assert gallery.identify(photo(person, 1)).name == person
