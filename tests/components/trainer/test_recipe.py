"""Presets and their overrides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from components.trainer.recipe import ALIKE, PRESET_ONLY, PRESETS, Preset, Recipe, TrainSettings
from data_ingest.sources.kinds import KINDS, Kind

EVERY = [(kind, preset) for kind in KINDS for preset in PRESETS[kind]]


@pytest.mark.parametrize(("kind", "preset"), EVERY)
def test_every_preset_of_every_kind_is_a_complete_recipe(kind: Kind, preset: Preset) -> None:
    recipe = TrainSettings(preset=preset).recipe(kind)
    assert recipe.steps > recipe.warmup_steps
    assert recipe.validate_every <= recipe.steps


def test_what_is_set_overrides_the_preset_and_zero_counts_as_set() -> None:
    recipe = TrainSettings(steps=7, augmentation=0, quarter_turns=False, ema=0.0).recipe()
    assert (recipe.steps, recipe.augmentation, recipe.quarter_turns, recipe.ema) == (7, 0, False, 0)
    assert recipe.widths == TrainSettings().recipe().widths


def test_every_field_of_a_recipe_but_a_presets_own_is_an_option_with_its_description() -> None:
    options = TrainSettings.model_fields
    for name, field in Recipe.model_fields.items():
        assert (name in options) != (name in PRESET_ONLY)
        if name in options:
            assert options[name].description == field.description
            assert options[name].default == (field.default if name in ALIKE else None)


def test_null_is_the_presets_value() -> None:
    assert TrainSettings(preset="accurate", steps=None, views=None).recipe().steps == 12_000
    for kind, preset in EVERY:
        values = PRESETS[kind][preset]
        recipe = TrainSettings(preset=preset).recipe(kind)
        assert {name: getattr(recipe, name) for name in values} == values


def test_photographs_are_seen_in_colour_and_signatures_wide() -> None:
    settings = TrainSettings()
    assert settings.recipe().preprocessing.shape == (28, 28, 1)
    assert settings.recipe("photo").preprocessing.shape == (96, 96, 3)
    assert settings.recipe("signature").preprocessing.shape == (96, 136, 1)
    # What is set goes before what the kind says.
    assert TrainSettings(color_mode="grayscale").recipe("photo").preprocessing.shape == (96, 96, 1)


def test_settings_that_fit_one_kind_alone_are_for_that_kind() -> None:
    settings = TrainSettings(aspect=2.0)
    assert settings.recipe("photo").preprocessing.shape == (96, 192, 3)
    with pytest.raises(ValidationError, match="framing: must be whole or box where aspect is 2"):
        settings.recipe("drawing")


def test_settings_survive_the_trip_through_json() -> None:
    settings = TrainSettings(preset="accurate", widths=(8, 16), seed=3)
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings


@given(of=st.sampled_from(EVERY), gpus=st.integers(1, 16))
def test_gpus_see_as_many_images_in_fewer_larger_steps(of: tuple[Kind, Preset], gpus: int) -> None:
    kind, preset = of
    base = TrainSettings(preset=preset).recipe(kind)
    scaled = TrainSettings(preset=preset).recipe(kind, gpus=gpus)
    factor = min(gpus * scaled.classes_per_batch // base.classes_per_batch, base.gpu_batch)
    assert scaled.steps * factor >= base.steps > (scaled.steps - 1) * factor
    assert scaled.learning_rate == pytest.approx(base.learning_rate * factor**0.5)
    # What decays, decays by the same amount over as many images.
    decay = scaled.learning_rate * scaled.weight_decay
    assert decay == pytest.approx(factor * base.learning_rate * base.weight_decay)
    assert scaled.ema == pytest.approx(base.ema**factor)
    assert scaled.images_per_class == base.images_per_class


def test_one_gpu_gets_batches_four_times_as_large_and_two_share_them() -> None:
    base = TrainSettings().recipe()
    one, two = (TrainSettings().recipe(gpus=gpus) for gpus in (1, 2))
    assert one.images_per_batch == 4 * base.images_per_batch
    assert 2 * two.images_per_batch == one.images_per_batch
    assert one.steps == two.steps == base.steps // 4
    assert one.learning_rate == 2 * base.learning_rate


def test_the_batch_of_koch_2015_is_the_papers_on_a_gpu_too() -> None:
    settings = TrainSettings(preset="koch2015")
    assert settings.recipe(gpus=1) == settings.recipe()


@pytest.mark.parametrize(
    "own",
    [{"steps": 90}, {"classes_per_batch": 8}, {"images_per_class": 3}, {"learning_rate": 1e-3}],
)
def test_a_batch_length_or_rate_that_is_set_holds_on_a_gpu_too(own: dict[str, object]) -> None:
    settings = TrainSettings(**own)
    assert settings.recipe(gpus=1) == settings.recipe()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"step": 3}, "step"),
        ({"steps": 0}, "steps"),
        ({"widths": (8, 0)}, "widths.1"),
        ({"loss": "triplet"}, "loss"),
        ({"warmup_steps": 3}, "warmup_steps"),
        ({"widths": (8, 8, 8, 8, 8, 8), "image_size": 35}, "image_size"),
        ({"preset": "koch2015", "image_size": 50}, "image_size"),
        ({"preset": "koch2015", "widths": (8, 8)}, "widths"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        TrainSettings(**wrong)


def test_one_fold_is_refused() -> None:
    with pytest.raises(ValidationError, match="calibration_folds: must be 0, or 2 or more"):
        TrainSettings(calibration_folds=1)


@given(steps=st.integers(1, 10_000), share=st.floats(0, 0.9))
def test_a_refit_takes_its_share_of_the_steps_and_leaves_some(steps: int, share: float) -> None:
    whole = TrainSettings(steps=steps, refit_share=share).recipe()
    first, refit = whole.stages()
    last = refit.steps if refit else 0
    assert first.steps + last == steps
    assert first.steps >= 1
    assert last == pytest.approx(share * steps, abs=1)
    assert first.warmup_steps <= first.steps // 5
    assert first.learning_rate == whole.learning_rate
    if refit:
        assert refit.warmup_steps <= refit.steps // 5
        assert refit.learning_rate < whole.learning_rate


def test_without_a_refit_there_is_one_stage() -> None:
    recipe = TrainSettings(refit_share=0).recipe()
    assert recipe.stages() == (recipe, None)


@pytest.mark.parametrize("preset", ["fast", "accurate"])
def test_of_few_photographed_classes_new_ones_are_made(preset: Preset) -> None:
    settings = TrainSettings(preset=preset)
    few, many = (settings.recipe("photo", classes=classes) for classes in (99, 100))
    assert (few.restyling, few.mirroring, few.views) == (2.0, False, False)
    assert many == settings.recipe("photo")
    assert few.preprocessing == many.preprocessing
    # What is set holds, and other kinds have presets of their own.
    assert TrainSettings(preset=preset, mirroring=True).recipe("photo", classes=9).mirroring
    for kind in ("drawing", "signature"):
        assert settings.recipe(kind, classes=9) == settings.recipe(kind)
    # What is not trained learns nothing of them.
    frozen, trained = (
        TrainSettings(preset=preset, backbone="EfficientNetV2B0", backbone_trainable=trainable)
        for trainable in ("frozen", "all")
    )
    assert frozen.recipe("photo", classes=9) == frozen.recipe("photo")
    assert trained.recipe("photo", classes=9).restyling == 2.0
    koch = TrainSettings(preset="koch2015")
    assert koch.recipe("photo", classes=9) == koch.recipe("photo")
