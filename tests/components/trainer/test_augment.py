"""Random distortions."""

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.augment import augment, augment_photos
from components.trainer.batches import quarter_turns


@pytest.fixture(scope="module")
def images() -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).uniform(size=(4, 9, 9, 1)), tf.float32)


def distort(
    images: tf.Tensor, *, turns: tuple[int, ...] = (0, 0, 0, 0), seed: int = 1, strength: float = 1
) -> np.ndarray:
    return augment(
        images,
        maps=tf.constant(quarter_turns(np.array(turns))),
        seed=tf.constant([seed, 0]),
        strength=strength,
    ).numpy()


def test_strength_zero_changes_nothing(images: tf.Tensor) -> None:
    np.testing.assert_allclose(distort(images, strength=0), images, atol=1e-4)


def test_quarter_turns_are_exact(images: tf.Tensor) -> None:
    turned = distort(images, turns=(0, 1, 2, 3), strength=0)
    for number in range(4):
        expected = tf.image.rot90(images[number], k=number)
        np.testing.assert_allclose(turned[number], expected, atol=1e-4)


def test_a_map_says_where_a_point_of_the_result_comes_from(images: tf.Tensor) -> None:
    mirror = tf.constant([[-1.0, 0.0], [0.0, 1.0]])
    turned = tf.constant(quarter_turns(np.array([1])))[0]
    maps = tf.stack([mirror, mirror @ turned, turned @ mirror, tf.eye(2)])
    mapped = augment(images, maps=maps, seed=tf.constant([1, 0]), strength=0.0).numpy()
    first, second, third, fourth = images.numpy()
    np.testing.assert_allclose(mapped[0], first[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(mapped[1], np.rot90(second[:, ::-1]), atol=1e-4)
    np.testing.assert_allclose(mapped[2], np.rot90(third)[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(mapped[3], fourth, atol=1e-4)


def test_the_same_seed_gives_the_same_distortions_and_another_seed_others(
    images: tf.Tensor,
) -> None:
    np.testing.assert_array_equal(distort(images), distort(images))
    assert np.abs(distort(images) - distort(images, seed=2)).max() > 0.1


def test_every_image_is_distorted_in_its_own_way(images: tf.Tensor) -> None:
    same = tf.repeat(images[:1], 4, axis=0)
    distorted = distort(same)
    assert min(np.abs(distorted[0] - other).max() for other in distorted[1:]) > 0.05


def test_ink_stays_between_paper_and_full(images: tf.Tensor) -> None:
    distorted = distort(images, strength=3)
    assert distorted.min() >= 0
    assert distorted.max() <= 1 + 1e-6


def test_a_drawing_is_never_mirrored() -> None:
    # The mirror image of a character is another character.
    page = np.zeros((32, 15, 15, 1), np.float32)
    page[:, 3:12, 6] = 1
    page[:, 3, 6:10] = 1
    mirrored = page[:, :, ::-1]
    maps = tf.eye(2, batch_shape=[32])
    distorted = augment(
        tf.constant(page), maps=maps, seed=tf.constant([5, 5]), strength=0.5
    ).numpy()
    to_itself = np.abs(distorted - page).mean(axis=(1, 2, 3))
    to_mirror = np.abs(distorted - mirrored).mean(axis=(1, 2, 3))
    assert (to_itself < to_mirror).mean() > 0.9


@pytest.fixture(scope="module")
def photos() -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).uniform(size=(64, 12, 20, 3)), tf.float32)


def distort_photos(
    photos: tf.Tensor,
    *,
    seed: int = 1,
    strength: float = 1.0,
    mirroring: bool = False,
    hue: float = 0.0,
) -> np.ndarray:
    return augment_photos(
        photos,
        maps=tf.eye(2, batch_shape=[len(photos)]),
        hues=tf.fill([len(photos)], hue),
        seed=tf.constant([seed, 0]),
        strength=strength,
        mirroring=mirroring,
    ).numpy()


def test_at_strength_zero_photographs_are_at_most_mirrored(photos: tf.Tensor) -> None:
    np.testing.assert_allclose(distort_photos(photos, strength=0), photos, atol=1e-4)
    mirrored = distort_photos(photos, strength=0, mirroring=True)
    kinds = set()
    for image, result in zip(photos.numpy(), mirrored, strict=True):
        turned = np.abs(result - image[:, ::-1]).max() < 1e-4
        assert turned or np.abs(result - image).max() < 1e-4
        kinds.add(turned)
    assert kinds == {True, False}


def test_a_third_of_a_turn_of_hues_makes_red_green_and_leaves_gray(photos: tf.Tensor) -> None:
    turned = distort_photos(photos, strength=0, hue=2 * np.pi / 3)
    np.testing.assert_allclose(turned, np.roll(photos, 1, axis=-1), atol=1e-4)
    gray = tf.repeat(photos[..., :1], 3, axis=-1)
    np.testing.assert_allclose(distort_photos(gray, strength=0, hue=1.0), gray, atol=1e-4)


def test_distorted_photographs_are_images_of_the_same_seed(photos: tf.Tensor) -> None:
    distorted = distort_photos(photos)
    assert distorted.shape == photos.shape
    assert distorted.min() >= 0
    assert distorted.max() <= 1
    np.testing.assert_array_equal(distorted, distort_photos(photos))
    assert np.abs(distorted - distort_photos(photos, seed=2)).max() > 0.1


def test_of_half_the_photographs_a_rectangle_is_erased(photos: tf.Tensor) -> None:
    flat = tf.ones_like(photos) * tf.constant([0.2, 0.5, 0.8])
    two_colours = tf.concat([flat[:, :, :10], 1.0 - flat[:, :, 10:]], axis=2)
    erased = 0
    for image in distort_photos(two_colours, strength=1.0):
        # Between the two halves of an image there is a ramp; the erased part is of one colour.
        middle = np.abs(image - image.mean(axis=(0, 1))).max(axis=-1) < 0.02
        erased += middle.sum() >= 4
    assert 10 < erased < 54
