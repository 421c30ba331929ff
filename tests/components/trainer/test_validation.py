"""One-shot validation on held-out classes."""

from pathlib import Path

import numpy as np
import pytest

from components.trainer.fit import IMAGES_A_BATCH, OneShotValidation, embed_all
from components.trainer.pair_data import PairData
from tests.pair_records import tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    return tiny_data(tmp_path_factory.mktemp("pairs"), groups=2, classes=5)


def test_trials_have_as_many_candidates_as_the_largest_group_allows(data: PairData) -> None:
    validation = OneShotValidation(data, trials=50)
    assert (validation.protocol, validation.way) == ("within", 5)


def test_a_collapsed_embedding_scores_chance(data: PairData) -> None:
    validation = OneShotValidation(data, trials=50)
    accuracy = validation.accuracy(lambda images: np.zeros((len(images), 4), np.float32))
    assert accuracy == pytest.approx(1 / 5)


def test_an_embedding_that_knows_the_classes_scores_one(data: PairData) -> None:
    classes = {
        image.tobytes(): np.eye(10, dtype=np.float32)[number]
        for image, number in zip(data.images, data.index.row_class, strict=True)
    }
    validation = OneShotValidation(data, trials=50)
    accuracy = validation.accuracy(
        lambda images: np.stack([classes[image.tobytes()] for image in images])
    )
    assert accuracy == 1


def test_groups_of_one_class_are_compared_with_each_other(tmp_path: Path) -> None:
    validation = OneShotValidation(tiny_data(tmp_path, groups=4, classes=1), trials=20)
    assert (validation.protocol, validation.way) == ("between", 4)


def test_a_single_class_allows_no_trial(tmp_path: Path) -> None:
    assert OneShotValidation(tiny_data(tmp_path, groups=1, classes=1, pairs=1), trials=9).way == 0


def test_images_are_embedded_in_order_whatever_their_number() -> None:
    for count in (1, IMAGES_A_BATCH, 2 * IMAGES_A_BATCH + 3):
        images = np.random.default_rng(1).integers(0, 256, (count, 2, 2), np.uint8)
        embeddings = embed_all(lambda batch: batch.reshape(-1, 4).astype(np.float32), images)
        np.testing.assert_array_equal(embeddings, images.reshape(count, 4))
