"""The network, distortions and optimiser of Koch, Zemel and Salakhutdinov 2015, "Siamese neural
networks for one-shot image recognition"."""

import math
from collections.abc import Sequence
from typing import Any, Final

import keras
import tensorflow as tf

from components.trainer.augment import warp
from components.trainer.recipe import Recipe

SIDE: Final = 105
"""Of the paper's images, pixels."""
ROTATION: Final = math.radians(10.0)
SHEAR: Final = 0.3
SCALE: Final = 0.2
SHIFT: Final = 2.0
"""Pixels of an image of `SIDE`."""
INCLUDED: Final = 0.5
"""Probability of each of the seven components of a distortion."""
RATE_DECAY: Final = 0.99
"""Of the learning rate, an epoch."""
FIRST_MOMENTUM: Final = 0.5
LAST_MOMENTUM: Final = 0.9
"""The paper's differs by layer and is not published."""
MOMENTUM_RISE: Final = 0.01
"""An epoch; not published."""


def network(image: keras.KerasTensor, recipe: Recipe, policy: Any) -> keras.KerasTensor:
    """The network of section 3.1 and figure 4, with the initialisation of section 3.2.

    Its sigmoid features are then L2-normalised like any other embedding here, which the paper
    does not do: the exported signatures promise unit vectors before weighting.
    """
    bias = keras.initializers.RandomNormal(0.5, 0.01, seed=recipe.seed)
    x = image
    kernels = (10, 7, 4, 4)
    for number, (width, kernel) in enumerate(zip(recipe.widths, kernels, strict=True)):
        x = keras.layers.Conv2D(
            width,
            kernel,
            activation="relu",
            kernel_initializer=keras.initializers.RandomNormal(
                0.0, 0.01, seed=recipe.seed + number
            ),
            bias_initializer=bias,
            dtype=policy,
        )(x)
        if number < len(kernels) - 1:
            x = keras.layers.MaxPooling2D(2, dtype=policy)(x)
    x = keras.layers.Flatten(dtype=policy)(x)
    return keras.layers.Dense(
        recipe.embedding_size,
        activation="sigmoid",
        kernel_initializer=keras.initializers.RandomNormal(0.0, 0.2, seed=recipe.seed),
        bias_initializer=bias,
        dtype=policy,
    )(x)


def distort(images: tf.Tensor, *, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """The affine distortions of section 3.2, drawn for each image alone.

    Rotation, shear along x and y, scale along x and y, shift along x and y: each is included with
    probability 0.5 and drawn uniformly from its range.

    Args:
      images: `float32[N, S, S, C]`.
      seed: `int32[2]`; the result depends on the arguments alone.
      strength: factor of all ranges.

    Returns:
      `float32[N, S, S, C]`, bilinear.
    """
    shape = [7, tf.shape(images)[0]]
    drawn = tf.random.stateless_uniform(shape, seed, -strength, strength)
    included = tf.random.stateless_uniform(shape, seed + tf.constant([0, 1 << 30])) < INCLUDED
    drawn = tf.where(included, drawn, 0.0)
    angle = ROTATION * drawn[0]
    shear_x, shear_y = SHEAR * drawn[1], SHEAR * drawn[2]
    scale_x, scale_y = 1.0 + SCALE * drawn[3], 1.0 + SCALE * drawn[4]
    unit = SHIFT * images.shape[1] / SIDE
    cos, sin = tf.cos(angle), tf.sin(angle)
    # Rotation times a matrix of scales and shears.
    matrix = (
        (cos * scale_x - sin * shear_y, cos * shear_x - sin * scale_y),
        (sin * scale_x + cos * shear_y, sin * shear_x + cos * scale_y),
    )
    return warp(images, matrix=matrix, shift=(unit * drawn[5], unit * drawn[6]))


class EpochwiseSGD(keras.optimizers.Optimizer):
    """Momentum descent with L2, whose rate falls and whose momentum rises with every epoch.

    In epoch t, from 0: `v = mu * v - rate * (gradient + 2 * l2 * w)`, `w = w + v`, with
    `rate = 0.99^t * learning_rate * factor` and `mu = min(0.5 + 0.01 * t, 0.9)`.

    Args:
      learning_rate: of the first epoch.
      epoch_steps: steps of an epoch.
      l2: weight of the sum of squares; vectors (biases, the head) are left alone.
      factors: of the learning rate, by variable in the order of `build`; the rest have 1.
    """

    def __init__(
        self, *, learning_rate: float, epoch_steps: int, l2: float, factors: Sequence[float]
    ) -> None:
        rate = keras.optimizers.schedules.ExponentialDecay(
            learning_rate, decay_steps=epoch_steps, decay_rate=RATE_DECAY, staircase=True
        )
        super().__init__(learning_rate=rate, name="epochwise_sgd")
        self._epoch_steps = epoch_steps
        self._l2 = l2
        self._factors = factors

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if not self.built:
            super().build(variables)
            self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        at = self._get_variable_index(variable)
        velocity = self._velocities[at]
        epoch = tf.cast(self.iterations.value // self._epoch_steps, tf.float32)
        momentum = tf.minimum(FIRST_MOMENTUM + MOMENTUM_RISE * epoch, LAST_MOMENTUM)
        if len(variable.shape) > 1:
            gradient += 2.0 * self._l2 * variable
        step = momentum * velocity - learning_rate * self._factors[at] * gradient
        self.assign(velocity, step)
        self.assign_add(variable, step)


def optimizer(
    recipe: Recipe, trained: Sequence[keras.Variable], *, epoch_steps: int
) -> EpochwiseSGD:
    """The paper's optimiser, with one rate, momentum and L2 for all layers but the head.

    The paper's features are not divided by their length, ours are, by about `sqrt(D / 2)`. That
    makes the head's weights w larger by this factor and their gradients smaller: a step as large
    as the paper's needs a rate `D / 2` times as high.
    """
    heads = [variable.path == "head/w" for variable in trained]
    made = EpochwiseSGD(
        learning_rate=recipe.learning_rate,
        epoch_steps=epoch_steps,
        l2=recipe.weight_decay,
        factors=[recipe.embedding_size / 2 if head else 1.0 for head in heads],
    )
    made.build(trained)
    return made
