"""Enrolling, recognising, forgetting: the same in SQLite and in PostgreSQL."""

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_ingest.sources.images import stored_form
from serving.client.images import encode_image
from serving.client.types import InvalidImage
from serving.errors import Code, ServingError
from serving.gallery.arguments import MAX_NAME
from serving.gallery.gallery import Gallery
from serving.gallery.records import AlreadyEnrolled, CohortImage, calibration_of
from serving.gallery.sqlite.store import SqliteStore
from serving.gallery.threshold import Impostors
from tests.image_variants import variants
from tests.serving.gallery.conftest import OpenStore
from tests.serving.gallery.fakes import BIAS, FakeModels, photo, written

PEOPLE = [f"person {number}" for number in range(12)]


@pytest.fixture
def gallery(open_one: OpenStore) -> Gallery:
    return Gallery(open_one(), FakeModels())


def enroll_all(gallery: Gallery) -> None:
    gallery.enroll_many([(person, [photo(person)]) for person in PEOPLE])


def test_one_image_is_enough_to_be_recognised_from_another(gallery: Gallery) -> None:
    enroll_all(gallery)
    for person in PEOPLE:
        found = gallery.identify(photo(person, 1))
        assert found.name == person
        assert found.candidates[0].name == person
        assert gallery.verify(person, photo(person, 2)).same


def test_a_stranger_is_unknown_and_nobody_in_particular(gallery: Gallery) -> None:
    enroll_all(gallery)
    found = gallery.identify(photo("stranger"))
    assert found.name is None
    assert found.candidates[0].logit <= found.threshold
    assert not gallery.verify(PEOPLE[0], photo("stranger")).same


def test_who_is_removed_is_unknown_from_then_on(gallery: Gallery) -> None:
    enroll_all(gallery)
    assert gallery.remove(PEOPLE[3]).images == 1
    assert gallery.identify(photo(PEOPLE[3], 1)).name is None
    assert PEOPLE[3] not in [
        c.name for c in gallery.identify(photo(PEOPLE[3]), limit=12).candidates
    ]
    with pytest.raises(ServingError) as error:
        gallery.verify(PEOPLE[3], photo(PEOPLE[3]))
    assert error.value.code is Code.NOT_FOUND
    assert gallery.remove(PEOPLE[3]).images == 0
    assert gallery.status().counts == (11, 11)


def test_the_same_image_again_changes_nothing(gallery: Gallery) -> None:
    assert gallery.enroll("Ada", [photo("Ada"), photo("Ada")]) == ("Ada", 1, 0)
    before = gallery.identity("Ada")
    assert gallery.enroll("Ada", [photo("Ada"), photo("Ada", 1)]) == ("Ada", 1, 1)
    after = gallery.identity("Ada")
    assert after.images[:1] == before.images
    assert len(after.images) == 2
    assert after.created == before.created
    assert gallery.status().counts == (1, 2)


def test_one_image_cannot_be_two_people(gallery: Gallery) -> None:
    gallery.enroll("Ada", [photo("Ada")])
    with pytest.raises(ServingError, match="already enrolled as 'Ada'") as error:
        gallery.enroll("Eve", [photo("Eve"), photo("Ada")])
    assert error.value.code is Code.ALREADY_EXISTS
    assert [identity.name for identity in gallery.identities()] == ["Ada"]


def test_several_images_of_a_name_are_used_together(gallery: Gallery) -> None:
    """The mean of the vectors, whether the images come at once or one by one."""
    enroll_all(gallery)
    shots = [photo("Ada", shot) for shot in range(5)]
    gallery.enroll("at once", shots[:3])
    for shot in shots[3:]:
        gallery.enroll("at once", [shot])
    vectors = FakeModels().embed(shots, version="1")
    query = FakeModels().embed([photo("Ada", 9)], version="1")[0]
    expected = BIAS - float(np.abs(query - vectors.mean(axis=0)).sum())
    found = gallery.identify(photo("Ada", 9), limit=13)
    assert found.candidates[0].logit == pytest.approx(expected, abs=1e-4)
    assert gallery.verify("at once", photo("Ada", 9)).logit == pytest.approx(expected, abs=1e-4)
    assert sorted(c.name for c in found.candidates) == sorted([*PEOPLE, "at once"])


def test_logits_are_those_of_the_match_signature(gallery: Gallery) -> None:
    enroll_all(gallery)
    models = FakeModels()
    a, b = models.embed([photo(PEOPLE[0], 1), photo(PEOPLE[0])], version="1")
    expected = BIAS - float(np.abs(a - b).sum())
    found = gallery.identify(photo(PEOPLE[0], 1)).candidates[0]
    assert found.logit == pytest.approx(expected, abs=1e-4)
    assert found.score == pytest.approx(1 / (1 + np.exp(-expected)), abs=1e-5)
    assert gallery.verify(PEOPLE[0], photo(PEOPLE[0], 1)).logit == pytest.approx(expected, abs=1e-4)


def test_nothing_is_stored_of_a_call_with_a_bad_image(gallery: Gallery) -> None:
    gallery.enroll("Bob", [photo("Bob")])
    for images in (
        [photo("Ada"), written(b"refused")],
        [photo("Ada"), b""],
        [],
        [b"x" * (17 << 20)],
    ):
        with pytest.raises(ServingError) as error:
            gallery.enroll("Ada", images)
        assert error.value.code is Code.INVALID_ARGUMENT
    assert [identity.name for identity in gallery.identities()] == ["Bob"]
    assert gallery.identify(photo("Ada")).candidates[0].name == "Bob"


def is_refused(image: bytes) -> bool:
    try:
        encode_image(image)
    except InvalidImage:
        return True
    return False


BLANK = [variant.data for variant in variants() if variant.blank and is_refused(variant.data)]
"""Of no use to a model of any kind; what else a model of drawings refuses, it refuses itself."""


def test_a_page_on_which_nothing_is_drawn_is_neither_enrolled_nor_recognised(
    gallery: Gallery,
) -> None:
    gallery.enroll("Ada", [photo("Ada")])
    before = gallery.status()
    for blank in BLANK:
        with pytest.raises(ServingError, match=r"'Ada', image 1: (nothing is drawn|too small)"):
            gallery.enroll("Ada", [photo("Ada", 1), blank])
        for ask in (
            lambda blank=blank: gallery.identify(blank),
            lambda blank=blank: gallery.verify("Ada", blank),
            lambda blank=blank: gallery.enroll_many([("Eve", [photo("Eve")]), ("Bob", [blank])]),
            lambda blank=blank: gallery.calibrate([*outsiders(6), CohortImage("x", blank)]),
        ):
            with pytest.raises(ServingError, match=r"nothing is drawn on it|too small") as error:
                ask()
            assert error.value.code is Code.INVALID_ARGUMENT
    assert gallery.status() == before


TURNED = next(v.data for v in variants() if v.name == "jpeg orientation 6 big-endian")
WEBP = next(v.data for v in variants() if v.name == "webp with alpha")


def test_what_is_kept_and_embedded_is_the_image_as_it_looks(gallery: Gallery) -> None:
    images = [stored_form(TURNED), stored_form(WEBP)]
    assert gallery.enroll("Ada", [TURNED, WEBP]) == ("Ada", 2, 0)
    assert gallery.enroll("Ada", [*images, TURNED]) == ("Ada", 0, 2)
    digests = tuple(hashlib.sha256(image).hexdigest() for image in images)
    assert gallery.identity("Ada").images == digests
    assert gallery.identify(TURNED).candidates == gallery.identify(images[0]).candidates
    assert gallery.verify("Ada", WEBP).logit == gallery.verify("Ada", images[1]).logit
    with pytest.raises(AlreadyEnrolled, match=r"image 1 .* already enrolled as 'Ada'") as error:
        gallery.enroll("Eve", [photo("Eve"), images[1]])
    assert error.value.place == 1


@pytest.mark.parametrize("name", ["", " Ada", "Ada\n", "A\0da", "A\u2028da", "\ud800", "x" * 201])
def test_names_that_cannot_be_shown_on_a_line_are_refused(gallery: Gallery, name: str) -> None:
    with pytest.raises(ServingError, match="a name") as error:
        gallery.enroll(name, [photo("Ada")])
    assert error.value.code is Code.INVALID_ARGUMENT


SQL_NAMES = [
    "Robert'); DROP TABLE identity;--",
    "' OR '1'='1",
    'Ada"; DELETE FROM oneshot.image; --',
    "%",
    "_",
    "100% {name} %s ?1 :name $1 @name",
    "\\'; VACUUM; --",
    "../../etc/passwd",
    "null",
    "김철수 👩‍🔬 Ünïcödé",
]


def test_names_are_names_and_never_sql(gallery: Gallery) -> None:
    gallery.enroll_many([(name, [photo(name)]) for name in SQL_NAMES])
    enroll_all(gallery)
    assert gallery.status().counts == (22, 22)
    for name in SQL_NAMES:
        assert gallery.identify(photo(name, 1)).name == name
        assert gallery.verify(name, photo(name, 1)).same
        assert gallery.identity(name).name == name
    everybody = sorted([*SQL_NAMES, *PEOPLE])
    assert [i.name for i in gallery.identities()] == everybody
    assert [i.name for i in gallery.identities(after=everybody[4], limit=3)] == everybody[5:8]
    for name in SQL_NAMES:
        assert gallery.remove(name).images == 1
    assert [i.name for i in gallery.identities()] == sorted(PEOPLE)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(min_size=1, max_size=MAX_NAME + 5))
def test_any_text_is_either_a_name_or_refused(tmp_path: Path, name: str) -> None:
    with Gallery(SqliteStore(tmp_path / "names.db"), FakeModels()) as gallery:
        code = Code.OK
        try:
            enrolment = gallery.enroll(name, [photo(name.encode("utf-8", "replace").hex())])
        except ServingError as error:
            code = error.code
        if code is not Code.OK:
            assert code is Code.INVALID_ARGUMENT
            assert gallery.status().counts.names == 0
            return
        assert gallery.identity(name).name == enrolment.name
        assert gallery.remove(name).images == 1
        assert gallery.identities() == []


def test_composed_and_decomposed_letters_are_one_name(gallery: Gallery) -> None:
    gallery.enroll("Zoe\u0308", [photo("Zoë")])
    assert gallery.verify("Zo\u00eb", photo("Zoë", 1)).same


def test_upper_case_makes_another_name(gallery: Gallery) -> None:
    for name in ("Ada", "ada", "ADA L.", "Zoe\u0308"):
        gallery.enroll(name, [photo(name)])
    assert gallery.identify(photo("ada", 1)).name == "ada"
    assert gallery.namesakes("ada") == ["Ada"]
    assert gallery.namesakes("ADA") == ["Ada", "ada"]
    assert gallery.namesakes("Bob") == gallery.namesakes("Zo\u00eb") == []


def test_an_empty_gallery_says_so(gallery: Gallery) -> None:
    with pytest.raises(ServingError, match="nobody is enrolled yet") as error:
        gallery.identify(photo("Ada"))
    assert error.value.code is Code.FAILED_PRECONDITION
    assert gallery.status().model_version is None
    assert gallery.identities() == []


def test_two_processes_see_each_others_changes_at_once(open_one: OpenStore) -> None:
    here, there = Gallery(open_one(), FakeModels()), Gallery(open_one(), FakeModels())
    here.enroll("Ada", [photo("Ada")])
    assert there.identify(photo("Ada", 1)).name == "Ada"
    there.enroll("Bob", [photo("Bob")])
    assert here.identify(photo("Bob", 1)).name == "Bob"
    there.remove("Ada")
    assert here.identify(photo("Ada", 1)).name is None
    assert here.identify(photo("Bob", 1)).name == "Bob"


def test_threads_enrol_identify_and_remove_side_by_side(gallery: Gallery) -> None:
    gallery.enroll("fixed", [photo("fixed")])
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(6):
                name = f"worker {number}.{turn}"
                gallery.enroll(name, [photo(name)])
                assert gallery.identify(photo(name, 1)).name == name
                assert gallery.identify(photo("fixed", 1)).name == "fixed"
                if turn % 2:
                    gallery.remove(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert gallery.status().counts == (13, 13)


def test_another_model_with_the_same_version_number_is_told_apart(open_one: OpenStore) -> None:
    Gallery(open_one(), FakeModels()).enroll("Ada", [photo("Ada")])
    for other in (FakeModels(salt="other"), FakeModels(dimensions=8)):
        with pytest.raises(ServingError, match="another model that was called version 1") as error:
            Gallery(open_one(), other).identify(photo("Ada"))
        assert error.value.code is Code.FAILED_PRECONDITION


def outsiders(people: int) -> list[CohortImage]:
    """Two images each."""
    return [
        CohortImage(f"outsider {number}", photo(f"outsider {number}", shot))
        for number in range(people)
        for shot in range(2)
    ]


def own_pairs(gallery: Gallery) -> tuple[str, int, int] | None:
    impostors = gallery.status().impostors
    if impostors is None or impostors.own is None:
        return None
    return (impostors.own.source, impostors.own.identities, impostors.own.pairs)


def test_a_cohort_of_outsiders_is_what_thresholds_rest_on(gallery: Gallery) -> None:
    gallery.enroll("Ada", [photo("Ada")])
    cohort = outsiders(40)
    status = gallery.calibrate(cohort)
    assert (status.threshold.basis, status.threshold.advice) == ("cohort", None)
    # Pairs of one outsider are no impostors.
    known = ("cohort", 40, 80 * 79 // 2 - 40)
    assert own_pairs(gallery) == known
    enroll_all(gallery)
    assert own_pairs(gallery) == known
    assert gallery.identify(photo("Ada", 1)).name == "Ada"
    assert gallery.identify(cohort[0].content).name is None
    with pytest.raises(ServingError):
        gallery.calibrate([CohortImage("x", written(b"refused"))])
    assert own_pairs(gallery) == known


def test_a_gallery_looks_at_its_own_pairs_once_ten_are_enrolled(gallery: Gallery) -> None:
    for person in PEOPLE[:9]:
        gallery.enroll(person, [photo(person)])
    assert own_pairs(gallery) is None
    gallery.enroll(PEOPLE[9], [photo(PEOPLE[9])])
    assert own_pairs(gallery) == ("gallery", 10, 45)
    gallery.enroll_many([(f"more {number}", [photo(f"more {number}")]) for number in range(4)])
    assert own_pairs(gallery) == ("gallery", 14, 91)


def test_that_means_are_alike_does_not_make_those_enrolled_alike(open_one: OpenStore) -> None:
    with Gallery(open_one(), FakeModels(noise=1.0)) as gallery:
        gallery.enroll_many(
            [(f"{number}", [photo(f"{number}", shot) for shot in range(2)]) for number in range(40)]
        )
        impostors = gallery.status().impostors
    assert impostors is not None
    assert impostors.own is not None
    single, of_two = impostors.shipped
    lift = of_two.mean - single.mean
    assert lift > 0.3
    # Of two means the logits are two lifts higher.
    assert impostors.own.mean == pytest.approx(single.mean, abs=0.7 * lift)


def test_a_small_gallery_judges_by_what_came_with_the_model(gallery: Gallery) -> None:
    gallery.enroll("Ada", [photo("Ada")])
    status = gallery.status()
    assert (status.threshold.basis, status.impostors is None) == ("model", False)
    assert gallery.identify(photo("Ada", 1)).name == "Ada"
    assert gallery.identify(photo("stranger")).name is None


def test_outsiders_that_the_model_was_trained_on_are_left_out(open_one: OpenStore) -> None:
    """To it they are less alike than strangers are: a threshold by them lets in too many."""
    cohort = outsiders(52)
    models = FakeModels(trained_on=[image.content for image in cohort[:23:2]])
    gallery = Gallery(open_one(), models)
    gallery.enroll("Ada", [photo("Ada")])
    status = gallery.calibrate(cohort)
    assert status.impostors is not None
    # An image of each is enough; and none of those left is lost.
    assert (own_pairs(gallery), status.impostors.seen) == (("cohort", 40, 80 * 79 // 2 - 40), 12)
    assert calibration_of(status)["left_out_as_trained_on"] == 12
    alone = Gallery(open_one(), models).calibrate(cohort[24:])
    assert alone.threshold == status.threshold
    with pytest.raises(ServingError, match="was trained on images of all of these outsiders"):
        gallery.calibrate(cohort[:24])
    assert own_pairs(gallery) == ("cohort", 40, 80 * 79 // 2 - 40)
    # A later version may have been trained on them.
    models.seen = [image.content for image in cohort]
    models.newest = "2"
    gallery.rebuild()
    rebuilt = gallery.status()
    assert (rebuilt.threshold.basis, own_pairs(gallery)) == ("model", None)
    assert rebuilt.impostors is not None
    assert rebuilt.impostors.seen == 40


def test_those_enrolled_that_the_model_was_trained_on_are_no_measure_either(
    open_one: OpenStore,
) -> None:
    models = FakeModels(trained_on=[photo(f"known {number}", 1) for number in range(15)])
    gallery = Gallery(open_one(), models)
    for number in range(15):
        gallery.enroll(f"known {number}", [photo(f"known {number}", shot) for shot in range(2)])
    assert own_pairs(gallery) is None
    gallery.enroll_many([(person, [photo(person)]) for person in PEOPLE])
    assert own_pairs(gallery) == ("gallery", 12, 66)
    assert gallery.status().impostors.seen == 15  # type: ignore[union-attr]


def test_of_earlier_exports_and_servers_it_is_not_known_whom_they_were_trained_on(
    open_one: OpenStore,
) -> None:
    gallery = Gallery(open_one(), FakeModels(trained_on=None))
    gallery.enroll("Ada", [photo("Ada")])
    status = gallery.calibrate(outsiders(40))
    assert (status.threshold.basis, calibration_of(status)["left_out_as_trained_on"]) == (
        "cohort",
        None,
    )
    # Written by an earlier release.
    known = status.impostors
    assert known is not None
    fields = json.loads(known.to_json())
    del fields["seen"]
    assert Impostors.from_json(json.dumps(fields)) == known


def test_without_any_figures_the_gallery_is_strict_and_says_what_to_do(
    open_one: OpenStore,
) -> None:
    gallery = Gallery(open_one(), FakeModels(ships=False))
    gallery.enroll("Ada", [photo("Ada")])
    bound, basis, advice = gallery.status().threshold
    assert basis == "scores"
    assert bound == pytest.approx(np.log(100))
    assert advice is not None
    assert "gallery calibrate --images" in advice
    gallery.calibrate(outsiders(40))
    assert gallery.status().threshold.basis == "cohort"


def test_what_came_with_a_model_is_kept_where_only_its_server_is_asked(
    open_one: OpenStore,
) -> None:
    Gallery(open_one(), FakeModels()).enroll("Ada", [photo("Ada")])
    remote = Gallery(open_one(), FakeModels(ships=False))
    assert remote.calibrate().threshold.basis == "model"
    assert remote.identify(photo("Ada", 1)).name == "Ada"


def test_an_image_is_accepted_from_the_least_rate_on_and_not_below(gallery: Gallery) -> None:
    enroll_all(gallery)
    for person, image in (
        (PEOPLE[0], photo(PEOPLE[0], 1)),
        (PEOPLE[0], photo("stranger")),
        (PEOPLE[0], photo("stranger 3")),
    ):
        found = gallery.verify(person, image, false_accept_rate=0.02)
        assert found.false_accept_rate == 0.02
        rate = found.least_rate
        assert found.same is (rate is not None and rate <= 0.02)
        if rate is None:
            assert not gallery.verify(person, image, false_accept_rate=0.5).same
        elif rate > 1e-8:
            assert gallery.verify(person, image, false_accept_rate=rate).same
            assert not gallery.verify(person, image, false_accept_rate=0.999 * rate).same


def test_many_images_are_answered_as_one_by_one(gallery: Gallery) -> None:
    enroll_all(gallery)
    images = [photo(PEOPLE[2], 1), photo("stranger"), photo(PEOPLE[5], 2)]
    many = gallery.identify_many(images, limit=3)
    assert [found.name for found in many] == [PEOPLE[2], None, PEOPLE[5]]
    for found, image in zip(many, images, strict=True):
        alone = gallery.identify(image, limit=3)
        assert [one.name for one in found.candidates] == [one.name for one in alone.candidates]
        assert found.threshold == alone.threshold
    assert gallery.identify_many([]) == []
    with pytest.raises(ServingError, match="image 1: nothing is drawn"):
        gallery.identify_many([images[0], BLANK[0]])


def test_more_images_of_a_name_never_lower_its_threshold(gallery: Gallery) -> None:
    gallery.enroll("Ada", [photo("Ada")])
    single = gallery.verify("Ada", photo("Ada", 9)).threshold
    gallery.enroll("Ada", [photo("Ada", shot) for shot in range(1, 4)])
    assert gallery.verify("Ada", photo("Ada", 9)).threshold >= single
    assert gallery.identify(photo("Ada", 9)).threshold >= single


def test_fewer_false_accepts_mean_a_higher_threshold(gallery: Gallery) -> None:
    enroll_all(gallery)
    loose = gallery.identify(photo("stranger"), false_accept_rate=0.2).threshold
    strict = gallery.identify(photo("stranger"), false_accept_rate=1e-4).threshold
    one_name = gallery.verify(PEOPLE[0], photo("stranger"), false_accept_rate=0.2).threshold
    assert one_name < loose < strict
    for rate in (0.0, -1.0, 0.6, float("nan")):
        with pytest.raises(ServingError, match="false-accept rate"):
            gallery.identify(photo("Ada"), false_accept_rate=rate)
