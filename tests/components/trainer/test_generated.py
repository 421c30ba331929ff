"""Generated alphabets that are trained on besides the data's own."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from components.trainer import batches
from components.trainer import batches as generated
from components.trainer.batches import ClassBatches, MixedBatches, generated_images, training_feed
from data_ingest.settings import DatasetSettings
from data_ingest.sources.glyphs import draw_alphabet
from tests.pair_records import tiny_data, tiny_recipe, tiny_settings


def test_each_row_is_the_drawing_that_its_class_and_writer_say() -> None:
    recipe = tiny_recipe(image_size=35)
    index, images = generated_images(recipe, alphabets=2, characters=3)
    assert (len(index.groups), len(index.classes), images.shape) == (2, 6, (120, 35, 35))
    assert images.dtype == np.uint8
    drawn = list(draw_alphabet(2, characters=3, writers=20, seed=generated.SEED))
    for row in (60, 79, 119):
        character = int(index.row_class[row]) - 3
        assert index.class_name(row) == f"Generated_002/character{character + 1:02}"
        ink = drawn[character][index.writer(row) - 1]
        # Framed by the ink: a window of 84 pixels, or a little more than the drawing's longer side.
        assert images[row].max() > 200
        side = max(84.0, 1.06 * max(np.ptp(np.argwhere(ink), axis=0) + 1))
        assert images[row].sum() / 255 == pytest.approx(ink.sum() * (35 / side) ** 2, rel=0.1)


def test_the_trainings_of_one_model_draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = generated_images(tiny_recipe(seed=1), alphabets=1, characters=2)
    monkeypatch.setattr(generated, "draw_alphabet", lambda *_, **__: pytest.fail("drawn again"))
    assert generated_images(tiny_recipe(seed=2, steps=3), alphabets=1, characters=2) is first


def test_a_share_of_the_batches_is_generated_and_points_at_generated_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        batches,
        "generated_images",
        lambda recipe: generated_images(recipe, alphabets=2, characters=4),
    )
    data = tiny_data(tmp_path)
    recipe = tiny_recipe(generated_share=0.3)
    feed = training_feed(data, recipe)
    assert len(feed.images) == len(data.images) + 160
    np.testing.assert_array_equal(feed.images[: len(data.images)], data.images)
    generated_ones = 0
    for number in range(300):
        rows = feed.batches[number].rows
        kinds = set(rows >= len(data.images))
        assert len(kinds) == 1
        generated_ones += kinds == {True}
        assert rows.max() < len(feed.images)
        np.testing.assert_array_equal(rows, feed.batches[number].rows)
    assert 60 <= generated_ones <= 120


def test_without_a_share_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "generated_images", None)
    data = tiny_data(tmp_path)
    feed = training_feed(data, tiny_recipe(generated_share=0))
    assert feed.images is data.images
    assert isinstance(feed.batches, ClassBatches)
    assert not isinstance(feed.batches, MixedBatches)


def test_pairs_cannot_be_mixed_with_generated_alphabets() -> None:
    with pytest.raises(ValidationError, match="generated_share: must be 0 unless loss is batch"):
        tiny_settings(generated_share=0.5, loss="pair")


def test_no_synthetic_data_set_can_have_the_alphabets_that_are_trained_on() -> None:
    with pytest.raises(ValidationError):
        DatasetSettings(synthetic_seed=generated.SEED)
