"""What a model must be better than."""

import json
from pathlib import Path

import pytest

from components.evaluator import comparison
from components.evaluator.comparison import COMPARISON_FILE, compare, not_beaten
from components.evaluator.eval_config import eval_config
from components.evaluator.settings import EvaluateSettings, Threshold

FIGURE = "within_15way_accuracy"
FIGURES = {FIGURE: {"pixel_1nn": 0.2, "hog": 0.507}, "within_5way_accuracy": {"hog": 0.9}}


@pytest.mark.parametrize(("accuracy", "beats"), [(0.38, False), (0.507, False), (0.508, True)])
def test_a_model_must_be_right_more_often_than_the_best_baseline(
    accuracy: float, beats: bool
) -> None:
    reasons = [*not_beaten({FIGURE: accuracy}, FIGURES, [FIGURE])]
    assert (reasons == []) is beats
    if not beats:
        assert reasons[0].startswith(f"{FIGURE} {accuracy:.4f} does not beat HOG, which has 0.5070")


def test_nothing_is_asked_where_trials_are_easy_and_of_figures_that_are_not_there() -> None:
    easy = {FIGURE: {"pixel_1nn": 1.0}}
    assert [*not_beaten({FIGURE: 0.985}, easy, [FIGURE])] == []
    assert [*not_beaten({FIGURE: 0.975}, easy, [FIGURE])] != []
    assert [*not_beaten({}, FIGURES, [FIGURE])] == []
    assert [*not_beaten({FIGURE: 0.1}, {}, [FIGURE])] == []


@pytest.mark.parametrize("beat", [True, False])
def test_figures_with_a_threshold_are_compared_and_all_are_written(
    beat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {FIGURE: 0.4, "within_5way_accuracy": 0.5, "auc": 0.9}
    monkeypatch.setattr(comparison, "baseline_figures", lambda examples: FIGURES)
    monkeypatch.setattr(comparison, "read_metrics", lambda uri: model)
    settings = EvaluateSettings(thresholds={FIGURE: Threshold(min=0.3), "auc": Threshold(min=0.6)})
    config = eval_config(settings, {("within", 15), ("within", 5), ("verification", 0)})
    reasons = compare(examples=tmp_path, evaluation=tmp_path, config=config, beat=beat)
    assert [reason.split()[0] for reason in reasons] == [FIGURE] * beat
    written = json.loads((tmp_path / COMPARISON_FILE).read_text())
    assert written == {"figures": FIGURES, "refusals": reasons}
