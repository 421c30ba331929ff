"""The distortions and the optimiser of Koch et al. 2015."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from components.trainer import koch2015
from components.trainer.batches import training_feed
from components.trainer.devices import choose_accelerator
from components.trainer.fit import fit
from components.trainer.model import build_model
from components.trainer.recipe import TrainSettings
from components.trainer.step import TrainingStep
from tests.pair_records import tiny_data

SIDE = 21


@pytest.fixture(scope="module")
def drawing() -> tf.Tensor:
    page = np.zeros((1, SIDE, SIDE, 1), np.float32)
    page[0, 6:15, 8] = 1
    page[0, 6, 8:14] = 1
    return tf.constant(page)


def distort(images: tf.Tensor, *, seed: int = 1, strength: float = 1.0) -> np.ndarray:
    return koch2015.distort(images, seed=tf.constant([seed, 7]), strength=strength).numpy()


def test_distortions_of_no_strength_change_nothing(drawing: tf.Tensor) -> None:
    np.testing.assert_allclose(distort(drawing, strength=0.0), drawing, atol=1e-5)


def test_distortions_follow_the_seed_and_differ_between_images(drawing: tf.Tensor) -> None:
    many = tf.repeat(drawing, 64, axis=0)
    np.testing.assert_array_equal(distort(many), distort(many))
    assert np.abs(distort(many) - distort(many, seed=2)).max() > 0.1
    assert len({image.tobytes() for image in distort(many)}) > 50


def test_each_of_the_seven_components_is_left_out_half_of_the_time() -> None:
    # All are left out in 1 of 2^7: of 4096 images 32 stay as they are, give or take.
    page = np.random.default_rng(1).uniform(size=(1, 9, 9, 1)).astype(np.float32)
    many = tf.repeat(tf.constant(page), 4096, axis=0)
    same = np.isclose(distort(many), page, atol=1e-4).all(axis=(1, 2, 3)).sum()
    assert 10 <= same <= 60


def test_a_drawing_is_neither_turned_far_nor_mirrored(drawing: tf.Tensor) -> None:
    many = tf.repeat(drawing, 64, axis=0)
    page = drawing.numpy()
    other_ways = [page[:, :, ::-1], page[:, ::-1], np.rot90(page, axes=(1, 2))]
    distorted = distort(many)
    own = np.abs(distorted - page).mean(axis=(1, 2, 3))
    for other in other_ways:
        assert (own < np.abs(distorted - other).mean(axis=(1, 2, 3))).mean() > 0.9


def test_the_optimiser_descends_as_the_paper_says() -> None:
    kernel = keras.Variable(np.full((2, 1), 2.0, np.float32), name="kernel")
    bias = keras.Variable(np.full((3,), 2.0, np.float32), name="bias")
    optimizer = koch2015.EpochwiseSGD(learning_rate=0.1, epoch_steps=2, l2=0.05, factors=[1.0, 3.0])
    optimizer.build([kernel, bias])
    w, b, v_w, v_b = 2.0, 2.0, 0.0, 0.0
    for step in range(7):
        optimizer.apply([tf.fill((2, 1), 0.3), tf.fill((3,), 0.3)])
        epoch = step // 2
        rate, momentum = 0.1 * 0.99**epoch, 0.5 + 0.01 * epoch
        v_w = momentum * v_w - rate * (0.3 + 2 * 0.05 * w)
        v_b = momentum * v_b - 3 * rate * 0.3
        w, b = w + v_w, b + v_b
        np.testing.assert_allclose(kernel.numpy(), w, rtol=1e-5)
        np.testing.assert_allclose(bias.numpy(), b, rtol=1e-5)


def test_momentum_rises_no_further_than_its_last_value() -> None:
    weight = keras.Variable(np.zeros((2, 1), np.float32))
    optimizer = koch2015.EpochwiseSGD(learning_rate=0.1, epoch_steps=1, l2=0.0, factors=[1.0])
    optimizer.build([weight])
    optimizer.apply([tf.ones((2, 1))])
    optimizer.iterations.assign(1000)
    before = weight.numpy().copy()
    optimizer.apply([tf.zeros((2, 1))])
    np.testing.assert_allclose(weight.numpy() - before, 0.9 * before, rtol=1e-5)


def test_the_head_learns_as_fast_as_if_features_had_no_unit_length() -> None:
    recipe = TrainSettings(preset="koch2015", widths=(2, 2, 2, 2), embedding_size=8).recipe()
    model = build_model(recipe)
    trained = model.trainable_variables
    optimizer = koch2015.optimizer(recipe, trained, epoch_steps=10)
    start = [np.asarray(variable).copy() for variable in trained]
    optimizer.apply([-tf.ones(variable.shape) for variable in trained])
    for variable, before in zip(trained, start, strict=True):
        moved = float(np.abs(np.asarray(variable) - before).mean())
        is_head = variable.path == "head/w"
        assert moved == pytest.approx(recipe.learning_rate * (4 if is_head else 1), rel=0.02)


def test_koch_2015_trains_on_the_pairs_and_validates_after_each_pass(tmp_path: Path) -> None:
    settings = TrainSettings(
        preset="koch2015",
        image_size=65,
        widths=(4, 4, 4, 4),
        embedding_size=16,
        classes_per_batch=10,
        steps=6,
    )
    pairs = tiny_data(tmp_path / "train", groups=4, pairs=60, size=65)
    held_out = tiny_data(tmp_path / "eval", first=7, pairs=60, size=65)
    accelerator = choose_accelerator(mixed_precision="off", xla="off")
    fitted = fit(settings.recipe(), pairs, held_out, accelerator=accelerator)
    # 60 pairs, 20 a step.
    assert [entry["step"] for entry in fitted.facts.history] == [3, 6]


def test_the_averaged_weights_of_koch_2015_are_the_trained_ones(tmp_path: Path) -> None:
    recipe = TrainSettings(
        preset="koch2015", image_size=65, widths=(2, 2, 2, 2), embedding_size=8
    ).recipe()
    average = build_model(recipe)
    step = TrainingStep(recipe, average, choose_accelerator(mixed_precision="off", xla="off"))
    data = tiny_data(tmp_path, size=65)
    feed = training_feed(data, recipe)
    step.run(step.prepare([feed.batches[0]], feed.images, 0))
    for one, other in zip(average.weights, step.student.weights, strict=True):
        np.testing.assert_array_equal(one, other)
