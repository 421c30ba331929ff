"""One step of training, compiled: augmentation, loss, gradient, update, averaged weights."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from components.augment import augment
from components.batches import Batch
from components.devices import Accelerator
from components.losses import batch_contrast, pair_cross_entropy
from components.model import EMBEDDER, HEAD, build_model
from components.train_settings import Recipe


class TrainingStep:
    """Updates a student model, and with it an exponential moving average of its weights.

    Every replica has a batch of its own, contrasts within it, and contributes the mean of the
    gradients: several GPUs see more images a step, and the number of steps stays what it is.

    Args:
      recipe: what to train.
      average: float32 model that holds the averaged weights, batch statistics included. The
        student starts with its weights.
      accelerator: where to train.
    """

    def __init__(self, recipe: Recipe, average: keras.Model, accelerator: Accelerator) -> None:
        self._recipe = recipe
        self._average = average
        self._strategy = accelerator.strategy
        self._replicas = accelerator.replicas
        with self._strategy.scope():
            self._student = build_model(recipe, mixed_precision=accelerator.mixed_precision)
            self._student.set_weights(average.get_weights())
            self._embedder = self._student.get_layer(EMBEDDER)
            self._head = self._student.get_layer(HEAD)
            self._trained = [*self._embedder.trainable_variables, self._head.w]
            if recipe.loss == "pair":
                # The batch loss does not depend on b0.
                self._trained.append(self._head.b0)
            self._optimizer = _optimizer(recipe, self._trained)
        self._gradients = tf.function(self._loss_and_gradients, jit_compile=accelerator.xla)
        self._run = tf.function(self._step)

    @property
    def student_variables(self) -> list[tf.Variable]:
        return [weight.value for weight in self._student.weights]

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """What the optimizer updates."""
        return [variable.value for variable in self._trained]

    @property
    def optimizer_variables(self) -> list[tf.Variable]:
        return [variable.value for variable in self._optimizer.variables]

    @property
    def learning_rate(self) -> float:
        return float(self._optimizer.learning_rate)

    def __call__(
        self, parts: Sequence[Batch], images: npt.NDArray[np.uint8], step: int
    ) -> tf.Tensor:
        """Makes one step.

        Args:
          parts: one batch a replica.
          images: `uint8[n, S, S]`, what the rows of the batches point at.
          step: number of the step, from 0.

        Returns:
          The loss before the step, `float32[]`, not waited for.
        """
        values = [
            (
                tf.constant(images[part.rows]),
                tf.constant(part.labels),
                tf.constant(part.turns),
                tf.constant([self._recipe.seed, step * self._replicas + replica]),
            )
            for replica, part in enumerate(parts)
        ]
        # Early averages would otherwise be mostly the random weights of the start.
        momentum = tf.constant(min(self._recipe.ema, (1 + step) / (10 + step)))
        if self._replicas == 1:
            return self._run(*values[0], momentum)
        columns = [
            self._strategy.experimental_distribute_values_from_function(
                lambda context, at=at: values[context.replica_id_in_sync_group][at]
            )
            for at in range(4)
        ]
        return self._run(*columns, momentum)

    def _step(
        self, images: Any, labels: Any, turns: Any, seed: Any, momentum: tf.Tensor
    ) -> tf.Tensor:
        loss = self._strategy.run(self._replica_step, args=(images, labels, turns, seed))
        loss = self._strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None)
        for average, weight in zip(self._average.weights, self._student.weights, strict=True):
            average.value.assign(
                momentum * average.value + (1.0 - momentum) * tf.convert_to_tensor(weight.value)
            )
        return loss

    def _replica_step(
        self, images: tf.Tensor, labels: tf.Tensor, turns: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        ink = tf.cast(images, tf.float32)[..., tf.newaxis] / 255.0
        ink = augment(ink, turns=turns, seed=seed, strength=self._recipe.augmentation)
        loss, gradients = self._gradients(ink, labels)
        self._optimizer.apply(gradients, self._trained)
        return loss

    def _loss_and_gradients(
        self, ink: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            embeddings = self._embedder(ink, training=True)
            if self._recipe.loss == "batch":
                loss = batch_contrast(self._head.distances(embeddings), labels)
            else:
                loss = pair_cross_entropy(self._head(tf.split(embeddings, 2)), labels)
            # Replicas add their gradients up.
            loss /= self._replicas
        return loss, tape.gradient(loss, [variable.value for variable in self._trained])


def _optimizer(recipe: Recipe, trained: Sequence[keras.Variable]) -> keras.optimizers.Optimizer:
    """AdamW: linear warm-up, cosine decay, no decay of biases, batch norm and head."""
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.1 * recipe.learning_rate,
        decay_steps=max(recipe.steps - recipe.warmup_steps, 1),
        alpha=0.01,
        warmup_target=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=recipe.weight_decay)
    optimizer.exclude_from_weight_decay(
        var_list=[variable for variable in trained if len(variable.shape) < 2]
    )
    optimizer.build(trained)
    return optimizer
