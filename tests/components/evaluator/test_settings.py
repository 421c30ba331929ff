"""Settings of the evaluation refuse what would never gate."""

import pytest
from pydantic import ValidationError

from components.evaluator.settings import EvaluateSettings, GateSettings, Threshold


@pytest.mark.parametrize("name", ["accuracy", "official_1.5way_accuracy", "train_20way_accuracy"])
def test_a_threshold_on_no_known_figure_is_an_error_that_lists_them(name: str) -> None:
    with pytest.raises(ValidationError, match="official_<way>way_accuracy"):
        EvaluateSettings(thresholds={name: Threshold(min=0.5)})


@pytest.mark.parametrize(
    "name", ["official_20way_accuracy", "within_3way_accuracy", "auc", "ece", "eer_skilled"]
)
def test_a_threshold_on_a_figure_is_accepted(name: str) -> None:
    settings = EvaluateSettings(thresholds={name: Threshold(min=0.5, max_drop=0.1)})
    assert EvaluateSettings.model_validate_json(settings.model_dump_json()) == settings


def test_a_threshold_that_says_nothing_is_an_error() -> None:
    with pytest.raises(ValidationError, match="at least one of min, max and max_drop"):
        Threshold()


def test_a_threshold_that_nothing_can_satisfy_is_an_error() -> None:
    with pytest.raises(ValidationError, match=r"min 0\.9 is above max 0\.5"):
        Threshold(min=0.9, max=0.5)


def test_defaults_are_valid_and_travel_as_json() -> None:
    for settings in (EvaluateSettings(), GateSettings()):
        assert type(settings).model_validate_json(settings.model_dump_json()) == settings
