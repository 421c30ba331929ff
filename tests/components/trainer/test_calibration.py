"""Platt scaling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.trainer.calibration import UNCHANGED, Platt, fit_platt


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.2, 5), shift=st.floats(-3, 3), seed=st.integers(0, 1000))
def test_known_scale_and_shift_are_found_again(scale: float, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(-shift / scale, 2 / scale, 40_000)
    labels = rng.uniform(size=len(logits)) < 1 / (1 + np.exp(-(scale * logits + shift)))
    platt = fit_platt(logits, labels)
    assert platt.scale == pytest.approx(scale, rel=0.1)
    assert platt.shift == pytest.approx(shift, abs=0.3)


def test_the_mean_score_becomes_the_share_of_same_pairs() -> None:
    rng = np.random.default_rng(1)
    labels = rng.uniform(size=5000) < 0.3
    logits = 40 * rng.normal(labels * 1.0, 1.0) - 200
    platt = fit_platt(logits, labels)
    scores = 1 / (1 + np.exp(-(platt.scale * logits + platt.shift)))
    assert scores.mean() == pytest.approx(labels.mean(), abs=2e-3)


def test_folding_gives_the_scaled_logit_with_weights_that_stay_positive() -> None:
    rng = np.random.default_rng(1)
    w, distances = rng.uniform(0, 1, 4), rng.uniform(0, 1, (9, 4))
    platt = Platt(scale=2.5, shift=-0.7)
    folded_w, folded_b0 = platt.fold(w, 3.0)
    np.testing.assert_allclose(
        folded_b0 - distances @ folded_w, 2.5 * (3.0 - distances @ w) - 0.7, rtol=1e-12
    )
    assert (folded_w >= 0).all()


def test_two_maps_in_turn() -> None:
    first, second = Platt(2.0, -1.0), Platt(0.5, 3.0)
    assert first.then(second) == Platt(1.0, 0.5 * -1.0 + 3.0)
    assert first.then(UNCHANGED) == UNCHANGED.then(first) == first


@pytest.mark.parametrize(
    ("logits", "labels"),
    [([1.0, 2.0, 3.0], [1, 1, 1]), ([3.0, -3.0], [0, 1]), ([5.0, 5.0], [0, 1])],
    ids=["one label only", "the wrong way round", "collapsed"],
)
def test_where_calibration_makes_no_sense_logits_stay_and_a_warning_says_so(
    logits: list[float], labels: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    assert fit_platt(logits, labels) == Platt(1.0, 0.0)
    assert "Calibration skipped" in caplog.text


def test_perfectly_separated_pairs_give_a_finite_scale() -> None:
    platt = fit_platt([-3.0, -2.0, 2.0, 3.0], [0, 0, 1, 1])
    assert 0 < platt.scale < 100
    assert abs(platt.shift) < 1e-6
