"""The optimiser of the residual network."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from components.trainer.muon import Muon, optimizer, orthogonalized
from components.trainer.recipe import TrainSettings


@pytest.mark.parametrize("shape", [(12, 5), (3, 3, 2, 7), (1, 1, 9, 4)])
def test_the_update_of_a_matrix_or_kernel_is_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(1)
    variable = keras.Variable(np.zeros(shape, np.float32))
    made = Muon(1.0)
    made.build([variable])
    made.apply([tf.constant(draw.normal(size=shape), tf.float32)], [variable])
    matrix = np.array(variable).reshape(-1, shape[-1])
    change = np.linalg.svd(matrix, compute_uv=False) / (0.2 * max(matrix.shape) ** 0.5)
    # Five iterations bring every singular value near one, not to it (Jordan et al. 2024).
    assert change.min() > 0.5
    assert change.max() < 1.3


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (1152, 192)])
def test_the_shortened_iteration_gives_what_that_of_keras_gives(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(4)
    # Singular values over three orders of magnitude, as gradients have them.
    matrix = draw.normal(size=shape) * np.geomspace(1e-3, 1, shape[1])
    ours = orthogonalized(tf.constant(matrix, tf.float32))
    theirs = keras.optimizers.Muon(1.0).zeropower_via_newtonschulz5(
        tf.constant(matrix, tf.float32), 5
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_updates_go_against_the_gradient() -> None:
    draw = np.random.default_rng(2)
    kernel = keras.Variable(np.zeros((3, 3, 4, 8), np.float32))
    vector = keras.Variable(np.zeros(8, np.float32))
    gradients = [tf.constant(draw.normal(size=v.shape), tf.float32) for v in (kernel, vector)]
    made = Muon(0.01)
    made.build([kernel, vector])
    made.apply(gradients, [kernel, vector])
    for variable, gradient in zip((kernel, vector), gradients, strict=True):
        assert float((np.array(variable) * gradient.numpy()).sum()) < 0


def test_a_quadratic_form_of_a_kernel_is_minimised() -> None:
    draw = np.random.default_rng(3)
    target = draw.normal(size=(3, 3, 2, 4)).astype(np.float32)
    kernel = keras.Variable(np.zeros_like(target))
    recipe = TrainSettings(steps=200, learning_rate=0.1, weight_decay=0.0).recipe()
    made = optimizer(recipe, [kernel])
    for _ in range(recipe.steps):
        made.apply([tf.convert_to_tensor(kernel) - target], [kernel])
    assert np.abs(np.array(kernel) - target).max() < 0.05


def test_biases_do_not_decay_and_kernels_do() -> None:
    kernel = keras.Variable(np.ones((3, 3, 2, 4), np.float32))
    bias = keras.Variable(np.ones(4, np.float32))
    recipe = TrainSettings(steps=10, learning_rate=0.1, weight_decay=0.5).recipe()
    made = optimizer(recipe, [kernel, bias])
    zeros = [tf.zeros(variable.shape) for variable in (kernel, bias)]
    for _ in range(recipe.steps):
        made.apply(zeros, [kernel, bias])
    assert np.array(kernel).max() < 0.9
    np.testing.assert_array_equal(bias, np.ones(4))
