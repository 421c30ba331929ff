"""From impostors' logits to thresholds that keep a promise."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gallery.threshold import COHORT, Impostors, rate_per_comparison, threshold
from serving.saved_model.impostors import (
    MIN_IDENTITIES,
    ImpostorPairs,
    held_out_pairs,
    pairs_among,
)

BIAS = 40.0
DIMENSIONS = 32
Vectors = np.ndarray
rates = st.floats(1e-9, 0.5)


def people(random: np.random.Generator, count: int, *, alike: float = 0.0) -> Vectors:
    """`[count, 32]`, one of each; `alike` shrinks what distinguishes them."""
    return (random.normal(size=(count, DIMENSIONS)) * (1 - alike)).astype(np.float32)


def own(vectors: Vectors) -> ImpostorPairs | None:
    return ImpostorPairs.of(
        pairs_among(vectors, np.arange(len(vectors)), bias=BIAS), source="gallery"
    )


def shipped(random: np.random.Generator, *, count: int = 60, images: int = 8) -> Impostors:
    """As a model brings them: of people with several images."""
    who = np.repeat(np.arange(count), images)
    vectors = people(random, count)[who] + 0.5 * people(random, len(who))
    return Impostors(held_out_pairs(vectors, who, who * 0, bias=BIAS), None)


@given(
    seed=st.integers(0, 1000),
    count=st.integers(MIN_IDENTITIES, 60),
    low=rates,
    high=rates,
    comparisons=st.integers(1, 10_000),
)
def test_a_stricter_rate_or_a_larger_gallery_never_has_a_lower_threshold(
    seed: int, count: int, low: float, high: float, comparisons: int
) -> None:
    low, high = sorted((low, high))
    random = np.random.default_rng(seed)
    vectors = people(random, count)
    for known in (Impostors((), own(vectors)), Impostors((), None)):

        def bound(rate: float, names: int, known: Impostors = known) -> float:
            return threshold(known, false_accept_rate=rate, comparisons=names).logit

        assert bound(low, comparisons) >= bound(high, comparisons) - 1e-6
        assert bound(high, comparisons + 1) >= bound(high, comparisons) - 1e-6


@given(seed=st.integers(0, 1000), count=st.integers(MIN_IDENTITIES, 60), rate=rates)
def test_no_more_known_impostors_than_promised_are_above(
    seed: int, count: int, rate: float
) -> None:
    vectors = people(np.random.default_rng(seed), count)
    known = own(vectors)
    assert known is not None
    logits = pairs_among(vectors, np.arange(count), bias=BIAS).logits
    above = int((logits > known.quantile(rate) + 1e-6).sum())
    assert above <= (rate * len(logits) if known.supports(rate) else 10)


@given(rate=st.floats(1e-6, 0.5), comparisons=st.integers(1, 1_000_000))
def test_many_comparisons_together_accept_a_stranger_as_often_as_promised(
    rate: float, comparisons: int
) -> None:
    each = rate_per_comparison(rate, comparisons)
    assert -np.expm1(comparisons * np.log1p(-each)) == pytest.approx(rate, rel=1e-9)


TURNS = 1500
RATES = (0.01, 0.05)


def accepted(
    random: np.random.Generator,
    known: Callable[[Vectors], Impostors],
    *,
    names: int,
    images: int = 1,
) -> list[int]:
    """How many of `TURNS` strangers, one a new gallery, are accepted at each of `RATES`."""
    wrong = [0 for _ in RATES]
    for _ in range(TURNS):
        centers = people(random, names)
        drawn = centers[:, np.newaxis] + 0.5 * people(random, names * images).reshape(
            names, images, -1
        )
        gallery = drawn.mean(axis=1)
        stranger = people(random, 1) + 0.5 * people(random, 1)
        logit = BIAS - np.abs(gallery - stranger).sum(axis=1).min()
        impostors = known(gallery)
        for at, rate in enumerate(RATES):
            bound = threshold(impostors, false_accept_rate=rate, comparisons=names, images=images)
            wrong[at] += bool(logit > bound.logit)
    return wrong


def check_promise(wrong: list[int]) -> None:
    """Fails once in a million times if the rates are kept."""
    for count, rate in zip(wrong, RATES, strict=True):
        assert count <= TURNS * rate + 4.75 * np.sqrt(TURNS * rate * (1 - rate)) + 1


@pytest.mark.parametrize("names", [5, 20])
@pytest.mark.parametrize("images", [1, 5])
def test_strangers_are_accepted_no_more_often_than_promised_by_a_models_own_figures(
    names: int, images: int
) -> None:
    random = np.random.default_rng(names * images)
    known = shipped(random)
    check_promise(accepted(random, lambda _: known, names=names, images=images))


@pytest.mark.parametrize("names", [MIN_IDENTITIES, 20])
def test_a_small_gallery_alone_accepts_no_more_strangers_than_promised(names: int) -> None:
    random = np.random.default_rng(names)
    check_promise(accepted(random, lambda gallery: Impostors((), own(gallery)), names=names))


def test_a_gallery_too_small_for_the_rate_says_how_many_outsiders_are_needed() -> None:
    random = np.random.default_rng(1)
    alone = Impostors((), own(people(random, 20)))
    found = threshold(alone, false_accept_rate=0.01, comparisons=20)
    assert found.basis == "gallery"
    assert found.advice is not None
    assert "190 pairs of 20 identities" in found.advice
    assert "calibrate --images" in found.advice
    enough = int(found.advice.split("about ")[1].split()[0])
    cohort = ImpostorPairs.of(
        pairs_among(people(random, enough), np.arange(enough), bias=BIAS), source="cohort"
    )
    better = threshold(Impostors((), cohort), false_accept_rate=0.01, comparisons=20)
    assert (better.basis, better.advice) == ("cohort", None)


def test_identities_more_alike_than_those_of_the_model_raise_the_threshold() -> None:
    random = np.random.default_rng(2)
    model = shipped(random)
    usual = threshold(model, false_accept_rate=0.01, comparisons=15)
    pictures = 0.5 * people(random, 15)
    siblings = Impostors(model.shipped, own(people(random, 15, alike=0.5) + pictures))
    raised = threshold(siblings, false_accept_rate=0.01, comparisons=15)
    assert raised.logit > usual.logit
    assert raised.advice is not None
    assert "more alike" in raised.advice
    others = Impostors(model.shipped, own(people(random, 15) + pictures))
    assert threshold(others, false_accept_rate=0.01, comparisons=15).logit == usual.logit


def test_outsiders_decide_alone_once_they_are_many() -> None:
    random = np.random.default_rng(6)
    model = shipped(random)
    for count, basis in ((COHORT - 1, "model"), (COHORT, "cohort")):
        cohort = ImpostorPairs.of(
            pairs_among(people(random, count, alike=-0.5), np.arange(count), bias=BIAS),
            source="cohort",
        )
        known = Impostors(model.shipped, cohort)
        found = threshold(known, false_accept_rate=0.001, comparisons=20)
        assert found.basis == basis


def test_without_impostors_the_scores_are_taken_at_their_word() -> None:
    assert own(people(np.random.default_rng(3), MIN_IDENTITIES - 1)) is None
    found = threshold(None, false_accept_rate=0.01, comparisons=1)
    assert (found.basis, found.logit) == ("scores", pytest.approx(np.log(100)))
    assert found.advice is not None


def test_a_mean_of_images_is_nearer_to_strangers_and_its_threshold_higher() -> None:
    known = shipped(np.random.default_rng(4))
    assert [pairs.images for pairs in known.shipped] == [1, 2, 4, 8]
    bounds = [
        threshold(known, false_accept_rate=0.05, comparisons=5, images=images).logit
        for images in (1, 2, 4, 8, 50)
    ]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[3] == bounds[4]


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), count=st.integers(1, 30))
def test_what_is_stored_comes_back_as_it_was(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    known = Impostors(shipped(random, count=12).shipped, own(people(random, count)))
    assert Impostors.from_json(known.to_json()) == known
