"""Presets and their overrides."""

import pytest
from pydantic import ValidationError

from components.train_settings import PRESETS, TrainSettings


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_complete_recipe(preset: str) -> None:
    recipe = TrainSettings(preset=preset).recipe()
    assert recipe.steps > recipe.warmup_steps
    assert recipe.validate_every <= recipe.steps


def test_what_is_set_overrides_the_preset_and_zero_counts_as_set() -> None:
    recipe = TrainSettings(steps=7, augmentation=0, quarter_turns=False, ema=0.0).recipe()
    assert (recipe.steps, recipe.augmentation, recipe.quarter_turns, recipe.ema) == (7, 0, False, 0)
    assert recipe.widths == TrainSettings().recipe().widths


def test_settings_survive_the_trip_through_json() -> None:
    settings = TrainSettings(preset="accurate", widths=(8, 16), seed=3)
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"step": 3}, "step"),
        ({"steps": 0}, "steps"),
        ({"widths": (8, 8, 8, 8, 8, 8), "image_size": 35}, "image_size"),
        ({"preset": "koch2015", "image_size": 50}, "image_size"),
        ({"preset": "koch2015", "widths": (8, 8)}, "widths"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        TrainSettings(**wrong)
