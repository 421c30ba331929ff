"""Intervals of accuracy, AUC, equal error rate and calibration error."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluator.settings import VERIFICATION_METRICS
from components.evaluator.statistics import (
    ScoredPairs,
    equal_error_rate,
    hanley_mcneil_interval,
    true_accept_rate,
    wilson_interval,
)

labelled = st.lists(
    st.tuples(st.integers(-4, 4).map(float), st.integers(0, 1)), min_size=1, max_size=40
)


def test_wilson_interval_has_the_value_of_a_worked_example() -> None:
    # 81 of 263, Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_interval_of_nothing_is_unknown() -> None:
    assert all(math.isnan(bound) for bound in wilson_interval(0, 0))


@given(n=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilson_interval_holds_the_share_and_stays_in_0_to_1(n: int, share: float) -> None:
    low, high = wilson_interval(share * n, n)
    assert 0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1


def test_hanley_mcneil_standard_error_has_the_value_of_the_paper() -> None:
    # Hanley & McNeil 1982, their example: area 0.893, 51 abnormal and 58 normal, SE 0.032.
    low, high = hanley_mcneil_interval(0.893, 51, 58)
    assert (high - low) / (2 * 1.96) == pytest.approx(0.032, abs=2e-3)


@given(pairs=labelled)
def test_auc_is_the_share_of_pairs_ranked_right_with_ties_half(
    pairs: list[tuple[float, int]],
) -> None:
    same = [logit for logit, label in pairs if label]
    different = [logit for logit, label in pairs if not label]
    area, _ = ScoredPairs(*zip(*pairs, strict=True)).auc()
    if not same or not different:
        assert math.isnan(area)
        return
    wins = [(s > d) + 0.5 * (s == d) for s in same for d in different]
    assert area == pytest.approx(np.mean(wins))


@given(pairs=labelled, seed=st.integers(0, 99))
def test_figures_do_not_depend_on_the_order_of_pairs(
    pairs: list[tuple[float, int]], seed: int
) -> None:
    shuffled = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
    one, other = (ScoredPairs(*zip(*each, strict=True)) for each in (pairs, shuffled))
    for name in VERIFICATION_METRICS:
        np.testing.assert_equal(getattr(one, name)(), getattr(other, name)())


def test_equal_error_rate_of_a_constant_model_is_one_half() -> None:
    assert equal_error_rate(np.array([7.0]), np.array([13.0])) == pytest.approx(0.5)


def test_equal_error_rate_of_a_perfect_model_is_zero_and_of_a_reversed_one_is_one() -> None:
    low_first = (np.array([0.0, 5.0]), np.array([5.0, 0.0]))
    assert equal_error_rate(*low_first) == 0
    assert equal_error_rate(*reversed(low_first)) == 1


def test_equal_error_rate_of_two_shifted_normals_is_the_tail_beyond_the_middle() -> None:
    random = np.random.default_rng(0)
    logits = np.concatenate([random.normal(1, 1, 40_000), random.normal(-1, 1, 40_000)])
    value, (low, high) = ScoredPairs(logits, np.repeat([1, 0], 40_000)).eer()
    assert value == pytest.approx(0.1587, abs=0.004)
    assert low < 0.1587 < high


def test_true_accepts_are_counted_where_one_in_a_hundred_is_wrongly_accepted() -> None:
    same, different = np.array([3.0, 2.0, 5.0]), np.array([98.0, 1.0, 1.0])
    assert true_accept_rate(same, different) == 0.5
    assert true_accept_rate(same, np.array([99.0, 1.0, 0.0])) == 0.7
    assert true_accept_rate(same, np.array([0.0, 0.0, 7.0])) == 0
    random = np.random.default_rng(0)
    logits = np.concatenate([random.normal(2, 1, 20_000), random.normal(0, 1, 20_000)])
    value, (low, high) = ScoredPairs(logits, np.repeat([1, 0], 20_000)).tar_at_1pct_far()
    # P(N(2, 1) > 2.326)
    assert value == pytest.approx(0.372, abs=0.015)
    assert low < 0.372 < high


def test_bootstrap_standard_error_matches_the_binomial_one_for_a_hard_threshold() -> None:
    # With two logit values the EER interpolates linearly; its error is that of a proportion.
    logits = np.repeat([1.0, -1.0, 1.0, -1.0], [800, 200, 200, 800])
    value, (low, high) = ScoredPairs(logits, np.repeat([1, 0], 1000)).eer()
    assert value == pytest.approx(0.2)
    assert (high - low) / (2 * 1.96) == pytest.approx(math.sqrt(0.16 / 2000), rel=0.25)


def test_calibration_error_of_calibrated_scores_is_near_zero_and_of_overconfident_ones_is_not() -> (
    None
):
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 50_000)
    labels = (random.random(50_000) < 1 / (1 + np.exp(-logits))).astype(int)
    assert ScoredPairs(logits, labels).ece()[0] < 0.01
    value, (low, high) = ScoredPairs(3 * logits, labels).ece()
    assert value > 0.1
    assert low < value < high


def test_accuracy_counts_a_score_of_exactly_one_half_as_same() -> None:
    pairs = ScoredPairs([0.0, 0.0, -1.0], [1, 0, 0])
    assert pairs.verification_accuracy()[0] == pytest.approx(2 / 3)
