"""Losses over a batch of embeddings or of pairs."""

import tensorflow as tf


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
