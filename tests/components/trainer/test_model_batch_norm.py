"""The fused layer does what Keras's layer does."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from components.trainer.model import FusedBatchNormalization

SHAPE = (6, 5, 5, 8)


def pair(dtype: str = "float32") -> tuple[FusedBatchNormalization, keras.layers.Layer]:
    """The layer and Keras's, with the same weights, none of which is what it starts as."""
    draw = np.random.default_rng(1)
    weights = [draw.uniform(0.5, 2, SHAPE[-1]).astype(np.float32) for _ in range(4)]
    made = []
    for kind in (FusedBatchNormalization, keras.layers.BatchNormalization):
        layer = kind(momentum=0.9, dtype=dtype)
        layer.build(SHAPE)
        layer.set_weights(weights)
        made.append(layer)
    return made[0], made[1]


def images() -> tf.Tensor:
    return tf.constant(np.random.default_rng(2).normal(1, 3, SHAPE), tf.float32)


@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_are_those_of_keras(training: bool) -> None:
    found = []
    for layer in pair():
        x = images()
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            loss = tf.reduce_sum(y**3)
        gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
        found.append([y, *gradients])
    for own, expected in zip(*found, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-3)


def test_averages_move_towards_the_batch_and_only_in_training() -> None:
    layer, expected = pair()
    count = np.prod(SHAPE[:-1])
    layer(images(), training=False)
    np.testing.assert_array_equal(layer.moving_mean, expected.moving_mean)
    before = np.array(expected.moving_variance)
    layer(images(), training=True)
    expected(images(), training=True)
    np.testing.assert_allclose(layer.moving_mean, expected.moving_mean, rtol=1e-4)
    unbiased = 0.9 * before + (np.array(expected.moving_variance) - 0.9 * before) * (
        count / (count - 1)
    )
    np.testing.assert_allclose(layer.moving_variance, unbiased, rtol=1e-4)


def test_in_bfloat16_the_statistics_stay_float32() -> None:
    layer, _ = pair("mixed_bfloat16")
    y = layer(images(), training=True)
    assert y.dtype == tf.bfloat16
    assert layer.moving_mean.dtype == "float32"
    exact, _ = pair()
    np.testing.assert_allclose(
        tf.cast(y, tf.float32), exact(images(), training=True), rtol=0.02, atol=0.05
    )


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    image = keras.Input(SHAPE[1:])
    model = keras.Model(image, FusedBatchNormalization()(image))
    model(images(), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images()), model(images()))
