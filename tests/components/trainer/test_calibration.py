"""Platt scaling, and its correction by trainings without some of the groups."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.trainer import calibration, fit
from components.trainer.calibration import UNCHANGED, Platt, cross_fitted_correction, fit_platt
from components.trainer.devices import choose_accelerator
from components.trainer.pair_data import PairData
from components.trainer.recipe import Recipe
from tests.pair_records import tiny_data, tiny_recipe


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


GROUPS = 5


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    return tiny_data(tmp_path_factory.mktemp("train"), groups=GROUPS, classes=4, pairs=300)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    return tiny_data(tmp_path_factory.mktemp("held_out"), first=20, groups=2, classes=4, pairs=1000)


@pytest.fixture
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "fit", lambda *_, **__: pytest.fail("a fold was trained"))


def correction(train: PairData, held_out: PairData, recipe: Recipe) -> Any:
    return cross_fitted_correction(recipe, train, held_out, accelerator=choose_accelerator())


@pytest.mark.usefixtures("nothing_is_trained")
def test_without_folds_nothing_is_trained_and_nothing_changes(
    train: PairData, held_out: PairData
) -> None:
    assert correction(train, held_out, tiny_recipe(calibration_folds=0)) == UNCHANGED


@pytest.mark.usefixtures("nothing_is_trained")
def test_too_few_groups_for_the_folds_are_logged(
    train: PairData, held_out: PairData, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert correction(train, held_out, tiny_recipe(calibration_folds=3)) == UNCHANGED
    assert "8 held-out classes alone: 3 folds need 6 groups, found 5" in caplog.text


@pytest.mark.usefixtures("nothing_is_trained")
def test_a_fold_without_two_images_of_a_class_does_not_cost_the_training(
    train: PairData, held_out: PairData, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    one_a_class = train.take(train.index.class_start[:-1])
    assert correction(one_a_class, held_out, tiny_recipe(calibration_folds=2)) == UNCHANGED
    assert "images of fold 1: none of the" in caplog.text


def test_held_out_pairs_that_cannot_calibrate_correct_nothing(
    train: PairData, held_out: PairData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "fit", lambda *_, **__: SimpleNamespace(model=None))
    monkeypatch.setattr(calibration, "pair_logits", lambda _model, data: np.zeros(len(data.labels)))
    assert correction(train, held_out, tiny_recipe(calibration_folds=2)) == UNCHANGED


def test_an_offset_of_the_groups_that_a_training_did_not_see_is_found(
    train: PairData, held_out: PairData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same logits but for an offset: the map takes it away, and no group is judged by a training
    that saw it."""
    offset = -2.0
    trained: list[tuple[Recipe, set[str]]] = []
    judged: list[set[str]] = []
    rng = np.random.default_rng(1)

    def recorded(recipe: Recipe, rest: PairData, chosen_by: PairData, **_: Any) -> Any:
        assert chosen_by is held_out
        trained.append((recipe, set(rest.index.groups)))
        return SimpleNamespace(model=None)

    def pair_logits(_model: None, data: PairData) -> Any:
        # Same and different pairs with unit variance around 2 and -2: the log-odds are 4 x.
        logits = 4 * (2 * (2 * data.labels - 1) + rng.normal(size=len(data.labels)))
        if data is held_out:
            return logits
        judged.append(set(data.index.groups))
        return logits + offset

    monkeypatch.setattr(fit, "fit", recorded)
    monkeypatch.setattr(calibration, "pair_logits", pair_logits)
    found = correction(train, held_out, tiny_recipe(calibration_folds=2, steps=80))
    # Of logits 4 x, the calibrated ones are those themselves.
    assert found.scale == pytest.approx(1, abs=0.2)
    assert found.shift == pytest.approx(-offset, abs=0.5)
    assert [recipe.steps for recipe, _ in trained] == [10, 10]
    everything = set(train.index.groups)
    for (_, seen), unseen in zip(trained, judged, strict=True):
        assert seen == everything - unseen
        assert len(unseen) >= 2
    assert judged[0] | judged[1] == everything


def test_what_a_refit_does_to_strangers_is_corrected_too(
    train: PairData, held_out: PairData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fits that do nothing, refits that add 3 to every logit: the map takes them away."""
    everything = replace(train, fingerprint="both")
    refitted: list[set[str]] = []
    judged: list[set[str]] = []
    rng = np.random.default_rng(1)
    model = SimpleNamespace(get_weights=lambda: ["weights"])

    def fit_or_refit(
        recipe: Recipe, others: PairData, _: PairData, *, initial_weights: Any, **__: Any
    ) -> Any:
        if initial_weights is None:
            return SimpleNamespace(model=model)
        assert initial_weights == ["weights"]
        assert recipe.steps == 4
        refitted.append(set(others.index.classes))
        return SimpleNamespace(model="refitted")

    def pair_logits(judge: Any, data: PairData) -> Any:
        logits = 4 * (2 * (2 * data.labels - 1) + rng.normal(size=len(data.labels)))
        if data is held_out:
            assert judge is model
            return logits
        judged.append(set(data.index.classes))
        return logits + (3.0 if judge == "refitted" else 0.0)

    monkeypatch.setattr(fit, "fit", fit_or_refit)
    monkeypatch.setattr(calibration, "pair_logits", pair_logits)
    recipe = tiny_recipe(calibration_folds=2, steps=80, refit_share=0.4)
    found = cross_fitted_correction(
        recipe, train, held_out, everything, accelerator=choose_accelerator()
    )
    assert found.shift == pytest.approx(-3.0, abs=0.5)
    for seen, strangers in zip(refitted, judged, strict=True):
        assert seen == set(everything.index.classes) - strangers


def test_pairs_of_a_fold_are_mixed_as_the_held_out_ones_are(
    train: PairData, held_out: PairData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PairData] = []

    def pair_logits(_model: None, data: PairData) -> Any:
        seen.append(data)
        return 2.0 * data.labels

    monkeypatch.setattr(fit, "fit", lambda *_, **__: SimpleNamespace(model=None))
    monkeypatch.setattr(calibration, "pair_logits", pair_logits)
    correction(train, held_out, tiny_recipe(calibration_folds=2))

    def within(data: PairData) -> float:
        a, b = data.index.row_group[data.pairs].T
        return float((a == b)[data.labels == 0].mean())

    unseen = [data for data in seen if data is not held_out]
    assert len(unseen) == 2
    for data in unseen:
        assert len(data.labels) == len(held_out.labels)
        assert data.labels.mean() == pytest.approx(0.5, abs=1e-3)
        assert within(data) == pytest.approx(within(held_out), abs=0.01)
        classes = data.index.row_class[data.pairs]
        np.testing.assert_array_equal(classes[:, 0] == classes[:, 1], data.labels == 1)


def test_real_trainings_give_the_same_map_again(train: PairData, held_out: PairData) -> None:
    recipe = tiny_recipe(calibration_folds=2, steps=24)
    first = correction(train, held_out, recipe)
    assert first == correction(train, held_out, recipe) != UNCHANGED
    assert first.scale > 0
