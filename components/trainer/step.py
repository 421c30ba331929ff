"""One step of training, compiled: augmentation, loss, gradient, update, averaged weights."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from components.trainer import koch2015, muon
from components.trainer.augment import FRAMED_SHIFT, SHIFT, augment, augment_photos
from components.trainer.batches import Batch
from components.trainer.devices import Accelerator
from components.trainer.model import EMBEDDER, HEAD, build_model, changing, trained_before
from components.trainer.pair_data import Images
from components.trainer.recipe import Recipe


def batch_contrast(distances: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Each same-class pair against all different-class images of the batch.

    For images i and p of one class, with logits `-distances`, the term is the softmax
    cross-entropy of p among {p} and every n of another class; other images of the class of i
    are not rivals. The loss is the mean over all ordered pairs (i, p), i != p. The head's b0
    cancels out of it.

    Args:
      distances: `float32[N, N]`, symmetric, >= 0.
      classes: `int32[N]`, which images belong together.

    Returns:
      `float32[]`. NaN where the batch has no two images of one class.
    """
    same = classes[:, tf.newaxis] == classes[tf.newaxis]
    rivals = tf.where(same, tf.constant(-1e9, distances.dtype), -distances)
    rival = tf.reduce_logsumexp(rivals, axis=1, keepdims=True)
    positive = tf.cast(tf.linalg.set_diag(same, tf.zeros_like(classes, tf.bool)), distances.dtype)
    terms = tf.nn.softplus(rival + distances)
    return tf.reduce_sum(positive * terms) / tf.reduce_sum(positive)


def pair_cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean sigmoid cross-entropy of N pairs (Koch 2015, section 3.2, without its L2 term).

    Args:
      logits: `float32[N]`.
      labels: `[N]`, 1 same class, 0 different.

    Returns:
      `float32[]`.
    """
    labels = tf.cast(labels, logits.dtype)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))


class StepInput(NamedTuple):
    """What one step takes, as tensors."""

    replicas: list[tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]]
    """Of each: images `uint8[N, H, W, C]`, labels `int32[N]`, maps `float32[N, 2, 2]`, hues
    `float32[N]`, seed."""
    momentum: tf.Tensor
    """Of the averaged weights, `float32[]`."""


class TrainingStep:
    """Updates a `student` model, and with it an exponential moving average of its weights.

    Every replica has a batch of its own, contrasts within it, and contributes the mean of the
    gradients.

    Args:
      recipe: what to train.
      average: float32 model that holds the averaged weights, batch statistics included. The
        student starts with its weights.
      accelerator: where to train.
      epoch_steps: steps of an epoch, where the schedule asks for it (koch2015).
    """

    def __init__(
        self,
        recipe: Recipe,
        average: keras.Model,
        accelerator: Accelerator,
        *,
        epoch_steps: int = 1,
    ) -> None:
        self._recipe = recipe
        self._average = average
        self._strategy = accelerator.strategy
        self._replicas = accelerator.replicas
        with self._strategy.scope():
            self.student = build_model(recipe, mixed_precision=accelerator.mixed_precision)
            self.student.set_weights(average.get_weights())
            self._embedder = self.student.get_layer(EMBEDDER)
            self._head = self.student.get_layer(HEAD)
            self._trained = [*self._embedder.trainable_variables, self._head.w]
            if recipe.loss == "pair":
                # The batch loss does not depend on b0.
                self._trained.append(self._head.b0)
            if recipe.network == "koch2015":
                self._optimizer = koch2015.optimizer(recipe, self._trained, epoch_steps=epoch_steps)
            else:
                self._optimizer = muon.optimizer(
                    recipe, self._trained, backbone=trained_before(self.student)
                )
        # XLA compiles all but the distortions, for which it has no operation. It cannot compile
        # what goes on between replicas: of several, each compiles its gradients.
        alone = self._replicas == 1
        self._gradients = tf.function(
            self.loss_and_gradients, jit_compile=accelerator.xla and not alone
        )
        self._learn = tf.function(self._update, jit_compile=accelerator.xla and alone)
        self._run = tf.function(self._step)

    @property
    def student_variables(self) -> list[tf.Variable]:
        """Those that change."""
        return [weight.value for weight in changing(self.student)]

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

    def prepare(self, parts: Sequence[Batch], images: Images, step: int) -> StepInput:
        """Makes the input of `run`; any thread may, ahead of the step.

        Args:
          parts: one batch a replica.
          images: `uint8[n, H, W, C]`, what the rows of the batches point at.
          step: number of the step, from 0.
        """
        return StepInput(
            replicas=[
                (
                    tf.constant(images[part.rows]),
                    tf.constant(part.labels),
                    tf.constant(part.maps),
                    tf.constant(part.hues),
                    tf.constant([self._recipe.seed, step * self._replicas + replica]),
                )
                for replica, part in enumerate(parts)
            ],
            # Early averages would otherwise be mostly the random weights of the start.
            momentum=tf.constant(min(self._recipe.ema, (1 + step) / (10 + step))),
        )

    def shown(self, ready: StepInput) -> npt.NDArray[np.float32]:
        """What the network is shown in a step, distorted, by one replica: `float32[N, H, W, C]`."""
        images, _, maps, hues, seed = ready.replicas[0]
        return np.asarray(self.distort(images, maps, hues, seed))

    def run(self, ready: StepInput) -> tf.Tensor:
        """Makes the step; returns the loss before it, `float32[]`, not waited for."""
        if self._replicas == 1:
            return self._run(*ready.replicas[0], ready.momentum)
        columns = [
            self._strategy.experimental_distribute_values_from_function(
                lambda context, at=at: ready.replicas[context.replica_id_in_sync_group][at]
            )
            for at in range(5)
        ]
        return self._run(*columns, ready.momentum)

    def _step(
        self, images: Any, labels: Any, maps: Any, hues: Any, seed: Any, momentum: tf.Tensor
    ) -> tf.Tensor:
        seen = self._strategy.run(self.distort, args=(images, maps, hues, seed))
        return self._learn(seen, labels, momentum)

    def _update(self, seen: Any, labels: Any, momentum: tf.Tensor) -> tf.Tensor:
        loss = self._strategy.run(self._replica_update, args=(seen, labels))
        loss = self._strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None)
        self.average(momentum)
        return loss

    def average(self, momentum: tf.Tensor) -> None:
        """Moves the averaged weights towards the student's."""
        pairs = zip(changing(self._average), changing(self.student), strict=True)
        for average, weight in pairs:
            average.value.assign(
                momentum * average.value + (1.0 - momentum) * tf.convert_to_tensor(weight.value)
            )

    def distort(
        self, images: tf.Tensor, maps: tf.Tensor, hues: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        """From images `uint8[N, H, W, C]` to what the network is shown, `float32[N, H, W, C]`."""
        seen = tf.cast(images, tf.float32) / 255.0
        strength = self._recipe.augmentation
        if self._recipe.network == "koch2015":
            return koch2015.distort(seen, seed=seed, strength=strength)
        if self._recipe.color_mode == "rgb":
            return augment_photos(
                seen,
                maps=maps,
                hues=hues,
                seed=seed,
                strength=strength,
                mirroring=self._recipe.mirroring,
            )
        return augment(
            seen,
            maps=maps,
            seed=seed,
            strength=strength,
            largest_shift=FRAMED_SHIFT if self._recipe.framing == "ink" else SHIFT,
        )

    def _replica_update(self, seen: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        loss, gradients = self._gradients(seen, labels)
        self.apply(gradients)
        return loss

    def apply(self, gradients: list[tf.Tensor]) -> None:
        """Updates the student."""
        self._optimizer.apply(gradients, self._trained)

    def loss(self, seen: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """`float32[]` of a replica's batch, a share of the whole: replicas add theirs up."""
        embeddings = self._embedder(seen, training=True)
        if self._recipe.loss == "batch":
            loss = batch_contrast(self._head.distances(embeddings), labels)
        else:
            loss = pair_cross_entropy(self._head(tf.split(embeddings, 2)), labels)
        return loss / self._replicas

    def loss_and_gradients(
        self, seen: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The loss and its gradients, in the order of `trained_variables`."""
        with tf.GradientTape() as tape:
            loss = self.loss(seen, labels)
        return loss, tape.gradient(loss, self.trained_variables)
