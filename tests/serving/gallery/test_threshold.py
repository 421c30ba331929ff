"""From impostors' logits to thresholds that keep a promise."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gallery.threshold import (
    UNCALIBRATED,
    Impostors,
    impostor_logits,
    rate_per_comparison,
    threshold,
)

rates = st.floats(1e-9, 0.5)


def impostors_of(logits: np.ndarray) -> Impostors:
    found = Impostors.of(logits, source="cohort", people=50)
    assert found is not None
    return found


@given(
    logits=st.lists(st.floats(-50, 50), min_size=10, max_size=300),
    low=rates,
    high=rates,
)
def test_a_stricter_rate_never_has_a_lower_threshold(
    logits: list[float], low: float, high: float
) -> None:
    low, high = sorted((low, high))
    impostors = impostors_of(np.array(logits))
    assert impostors.quantile(low) >= impostors.quantile(high) - 1e-9


@given(seed=st.integers(0, 1000), pairs=st.integers(20, 5000), rate=st.floats(0.002, 0.5))
def test_no_more_known_impostors_than_promised_are_above(
    seed: int, pairs: int, rate: float
) -> None:
    logits = np.random.default_rng(seed).gumbel(size=pairs)
    above = int((logits > impostors_of(logits).quantile(rate)).sum())
    assert above <= max(rate * pairs, 10)
    if rate * pairs >= 10:
        # Nor is it much stricter than asked for.
        assert above >= 0.9 * rate * pairs - 2


def test_beyond_the_known_impostors_the_tail_is_longer_than_normal_and_not_endless() -> None:
    logits = np.random.default_rng(1).normal(-8, 2, size=20_000)
    for rate in (1e-4, 1e-6, 1e-9):
        normal = NormalDist(-8, 2).inv_cdf(1 - rate)
        assert normal - 0.1 < impostors_of(logits).quantile(rate) < -8 + 1.7 * (normal + 8)


@given(rate=st.floats(1e-6, 0.5), comparisons=st.integers(1, 1_000_000))
def test_many_comparisons_together_accept_a_stranger_as_often_as_promised(
    rate: float, comparisons: int
) -> None:
    each = rate_per_comparison(rate, comparisons)
    assert -np.expm1(comparisons * np.log1p(-each)) == pytest.approx(rate, rel=1e-9)


def test_the_promise_is_kept_for_strangers_and_galleries_never_seen() -> None:
    """A thousand galleries of 50 people, each asked about a stranger."""
    random = np.random.default_rng(3)

    def vectors(count: int) -> np.ndarray:
        return random.normal(size=(count, 64)).astype(np.float32)

    enrolled = vectors(200)
    impostors = impostors_of(impostor_logits(enrolled, np.arange(200), bias=40.0))
    for promised in (0.05, 0.2):
        bound = threshold(impostors, false_accept_rate=promised, comparisons=50)
        accepted = 0
        for _ in range(1000):
            gallery, stranger = vectors(50), vectors(1)
            accepted += 40.0 - np.abs(gallery - stranger).sum(axis=1).min() > bound
        # Alike comparisons make it fewer than promised, never many more.
        assert 0.2 * promised < accepted / 1000 < 1.3 * promised


def test_only_pairs_of_different_people_are_impostors() -> None:
    vectors = np.array([[0, 0], [1, 0], [0, 5], [2, 2]], np.float32)
    logits = impostor_logits(vectors, [7, 7, 8, 9], bias=10.0)
    assert sorted(logits.tolist()) == [4.0, 5.0, 5.0, 6.0, 7.0]
    assert len(impostor_logits(vectors[:1], [1], bias=0.0)) == 0


def test_without_impostors_the_model_decides_by_even_odds() -> None:
    assert Impostors.of(np.zeros(9), source="gallery", people=5) is None
    assert threshold(None, false_accept_rate=0.01, comparisons=10) == UNCALIBRATED == 0.0


@given(st.lists(st.floats(-1e3, 1e3), min_size=10, max_size=100))
def test_what_is_stored_comes_back_as_it_was(logits: list[float]) -> None:
    impostors = impostors_of(np.array(logits))
    assert Impostors.from_json(impostors.to_json()) == impostors
