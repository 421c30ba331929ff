"""Muon, an optimizer that orthogonalises the updates of matrices, for convolutional networks."""

from collections.abc import Sequence
from typing import Any, Final

import keras
import tensorflow as tf

from components.trainer.recipe import Recipe

MOMENTUM: Final = 0.95
COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that `orthogonalized` iterates (Jordan et al. 2024)."""
ITERATIONS: Final = 5
RMS: Final = 0.2
"""Root mean square of an update at learning rate 1: that of Adam's (Liu et al. 2025)."""
BACKBONE_RATE: Final = 0.1
"""Learning rate of the weights of a backbone, as a share of that of others."""
ADAM_RATE: Final = 1.0
"""Learning rate of Adam's updates, as a share of that of Muon's."""
ADAM_MEAN: Final = 0.9
ADAM_SQUARE: Final = 0.999
ADAM_EPSILON: Final = 1e-7


def optimizer(
    recipe: Recipe, trained: Sequence[keras.Variable], *, backbone: Sequence[keras.Variable] = ()
) -> "Muon":
    """Muon with linear warm-up and cosine decay; biases, batch norm and head do not decay.

    Args:
      recipe: learning rate, steps, weight decay.
      trained: what is updated.
      backbone: those of them that were trained before.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.1 * recipe.learning_rate,
        decay_steps=max(recipe.steps - recipe.warmup_steps, 1),
        alpha=0.01,
        warmup_target=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
    )
    made = Muon(schedule, decay=recipe.weight_decay, slow=backbone)
    made.build(trained)
    return made


class Muon(keras.optimizers.Optimizer):
    """Muon for matrices and convolutions, Adam for vectors and scalars.

    A kernel `[H, W, in, out]` is taken for the matrix `[H * W * in, out]`, as in the original
    (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"). Updates have
    the size of Adam's (Liu et al. 2025, "Muon is scalable for LLM training"), so a learning rate
    for Adam fits. Keras's own Muon leaves convolutions to Adam; what would have to be replaced in
    it is private, and other in Keras 3.12 than in 3.15.

    Args:
      learning_rate: a number or a schedule.
      decay: share that a step at learning rate 1 takes from matrices and kernels.
      slow: variables whose rate is `BACKBONE_RATE` of that, and so is their decay.
    """

    def __init__(
        self, learning_rate: Any, *, decay: float = 0.0, slow: Sequence[keras.Variable] = ()
    ) -> None:
        super().__init__(learning_rate=learning_rate, name="muon")
        self._decay = decay
        self._slow = {id(variable) for variable in slow}

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if not self.built:
            super().build(variables)
            self._means = self.add_optimizer_variables(variables, "momentum")
            self._slow_at = {at for at, one in enumerate(variables) if id(one) in self._slow}
            self._squares = [
                None if _is_matrix(one) else self.add_variable_from_reference(one, name="velocity")
                for one in variables
            ]

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        """Decays matrices alone. Keras 3.12 to 3.15 call it, though it is private, before updates:
        `test_biases_do_not_decay_and_kernels_do` fails once they do not."""
        for variable in filter(_is_matrix, variables):
            decay = keras.ops.cast(self._decay, variable.dtype)
            rate = self._rate_of(variable, keras.ops.cast(self.learning_rate, variable.dtype))
            variable.assign(variable - variable * decay * rate)

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        # Private by its name, but the way that Keras documents for optimizers of one's own.
        at = self._get_variable_index(variable)
        learning_rate = self._rate_of(variable, learning_rate)
        gradient = tf.convert_to_tensor(gradient)
        mean, square = self._means[at], self._squares[at]
        if square is not None:
            self._adam_step(gradient, variable, learning_rate * ADAM_RATE, mean, square)
            return
        self.assign_add(mean, gradient + mean * (MOMENTUM - 1))
        lookahead = gradient + MOMENTUM * tf.convert_to_tensor(mean)
        matrix = tf.reshape(lookahead, [-1, variable.shape[-1]])
        update = learning_rate * orthogonalized(matrix)
        update = update * keras.ops.sqrt(keras.ops.maximum(*matrix.shape)) * RMS
        self.assign_sub(variable, tf.reshape(update, variable.shape))

    def _rate_of(self, variable: keras.Variable, rate: Any) -> Any:
        # Updates are asked for with TensorFlow's variable, decay with Keras's.
        slow = self._get_variable_index(variable) in self._slow_at
        return BACKBONE_RATE * rate if slow else rate

    def _adam_step(
        self, gradient: tf.Tensor, variable: Any, learning_rate: Any, mean: Any, square: Any
    ) -> None:
        """Kingma and Ba 2015, with the bias corrections in the learning rate."""
        step = tf.cast(self.iterations + 1, gradient.dtype)
        rate = learning_rate * tf.sqrt(1 - ADAM_SQUARE**step) / (1 - ADAM_MEAN**step)
        self.assign_add(mean, (gradient - mean) * (1 - ADAM_MEAN))
        self.assign_add(square, (tf.square(gradient) - square) * (1 - ADAM_SQUARE))
        self.assign_sub(variable, mean * rate / (tf.sqrt(square) + ADAM_EPSILON))


def orthogonalized(x: tf.Tensor) -> tf.Tensor:
    """Brings the singular values of a matrix `float32[m, n]` near one.

    The iteration is `X <- a X + (b X X' + c X X' X X') X`, started with X of norm 1. Every step
    multiplies X by a polynomial of `X X'`, so it is enough to follow that small square matrix and
    the product of the polynomials, which is less work than to follow X.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[0] > x.shape[1]
    x = x / (tf.norm(x) + 1e-7)
    square = tf.matmul(x, x, transpose_a=tall, transpose_b=not tall)
    unit = tf.eye(square.shape[0])
    product = unit
    for _ in range(ITERATIONS):
        factor = a * unit + b * square + c * tf.matmul(square, square)
        product = tf.matmul(factor, product)
        square = tf.matmul(tf.matmul(factor, square), factor)
    return tf.matmul(x, product) if tall else tf.matmul(product, x)


def _is_matrix(variable: keras.Variable) -> bool:
    return len(variable.shape) in (2, 4)
