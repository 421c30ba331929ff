"""Test-time averaging."""

from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from components.trainer.model import EMBEDDER, VIEWS, MeanOfViews, Views, build_model
from components.trainer.recipe import TrainSettings
from data_ingest.sources.glyphs import draw_alphabet

SIDE = 24


@pytest.fixture(scope="module")
def ink() -> npt.NDArray[np.float32]:
    glyphs = draw_alphabet(1, characters=3, writers=2, seed=1)
    images = np.stack([image for hands in glyphs for image in hands])[..., np.newaxis]
    resized = tf.image.resize(images.astype(np.float32), [SIDE, SIDE], method="area").numpy()
    return np.asarray(resized / resized.max(), np.float32)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    settings = TrainSettings(image_size=SIDE, widths=(4, 8), embedding_size=6, views=True)
    return build_model(settings.recipe())


def test_an_image_is_embedded_alike_alone_and_among_others(
    model: keras.Model, ink: npt.NDArray[np.float32]
) -> None:
    embedder = model.get_layer(EMBEDDER)
    together = embedder(ink, training=False).numpy()
    assert together.shape == (len(ink), 6)
    for image, expected in zip(ink, together, strict=True):
        alone = embedder(image[np.newaxis], training=False).numpy()[0]
        np.testing.assert_allclose(alone, expected, atol=1e-5)


def test_the_embedding_is_the_mean_of_those_of_the_views(
    model: keras.Model, ink: npt.NDArray[np.float32]
) -> None:
    embedder = model.get_layer(EMBEDDER)
    inside = keras.Model(embedder.get_layer("views").output, embedder.get_layer("embedding").output)
    seen = tf.split(Views()(ink), len(VIEWS))
    means = np.mean([inside(view, training=False).numpy() for view in seen], axis=0)
    np.testing.assert_allclose(embedder(ink, training=False).numpy(), means, atol=1e-5)


def test_the_first_view_is_the_image_and_the_others_differ(ink: npt.NDArray[np.float32]) -> None:
    views = [view.numpy() for view in tf.split(Views()(ink), len(VIEWS))]
    np.testing.assert_allclose(views[0], ink, atol=1e-6)
    for place, view in enumerate(views):
        assert view.min() >= 0
        assert view.max() <= 1 + 1e-6
        assert np.count_nonzero(view.reshape(len(ink), -1).sum(axis=1)) == len(ink)
        for other in views[:place]:
            assert np.abs(view - other).mean() > 0.01


def test_in_training_there_is_one_view(model: keras.Model, ink: npt.NDArray[np.float32]) -> None:
    assert model.get_layer(EMBEDDER)(ink, training=True).shape == (len(ink), 6)
    np.testing.assert_array_equal(Views()(ink, training=True), ink)
    np.testing.assert_array_equal(MeanOfViews()(ink, training=True), ink)


def test_a_saved_model_embeds_alike(
    model: keras.Model, ink: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    pair = {"image_a": ink, "image_b": ink[::-1]}
    np.testing.assert_allclose(loaded(pair, training=False), model(pair, training=False), atol=1e-5)
