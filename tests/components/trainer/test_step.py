"""The losses against their definitions."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from components.trainer.step import batch_contrast, pair_cross_entropy


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 4), images=st.integers(2, 4))
def test_the_batch_loss_is_the_mean_cross_entropy_over_same_class_pairs(
    seed: int, classes: int, images: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), images))
    points = rng.normal(size=(len(labels), 3))
    distances = np.abs(points[:, None] - points[None]).sum(-1)
    terms = []
    for i, label in enumerate(labels):
        rivals = np.exp(-distances[i][labels != label]).sum()
        for p in np.flatnonzero(labels == label):
            if p != i:
                likeness = math.exp(-distances[i, p])
                terms.append(-math.log(likeness / (likeness + rivals)))
    loss = batch_contrast(tf.constant(distances, tf.float32), tf.constant(labels, tf.int32))
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-4)


def test_a_collapsed_embedding_has_the_loss_of_guessing() -> None:
    labels = tf.constant([0, 0, 1, 1, 2, 2])
    loss = batch_contrast(tf.zeros([6, 6]), labels)
    assert float(loss) == pytest.approx(math.log(1 + 4))


def test_pair_cross_entropy_of_an_undecided_model_is_one_bit() -> None:
    loss = pair_cross_entropy(tf.zeros([4]), tf.constant([0, 1, 1, 0]))
    assert float(loss) == pytest.approx(math.log(2))


def test_pair_cross_entropy_rewards_the_right_side() -> None:
    logits = tf.constant([3.0, -3.0])
    right = pair_cross_entropy(logits, tf.constant([1, 0]))
    wrong = pair_cross_entropy(logits, tf.constant([0, 1]))
    assert float(right) == pytest.approx(math.log1p(math.exp(-3)))
    assert float(wrong) == pytest.approx(3 + math.log1p(math.exp(-3)))
