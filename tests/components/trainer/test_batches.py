"""Which images make up a batch, generated ones among them."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from components.trainer import batches
from components.trainer.batches import (
    ClassBatches,
    MixedBatches,
    PairBatches,
    generated_images,
    quarter_turns,
    training_feed,
)
from components.trainer.pair_data import PairData
from components.trainer.step import batch_contrast
from data_ingest.errors import InputError
from data_ingest.sampling.index import ImageIndex, ImageRef
from data_ingest.settings import DatasetSettings
from data_ingest.sources.glyphs import draw_alphabet
from serving.saved_model.contract import Preprocessing
from tests.data_ingest.sampling_strategies import signatures
from tests.pair_records import tiny_data, tiny_recipe, tiny_settings


def make_index(groups: int, classes: int, images: int) -> ImageIndex:
    return ImageIndex.build(
        ImageRef(f"g{g}", f"g{g}/c{c}", image, f"{image}")
        for g in range(groups)
        for c in range(classes)
        for image in range(images)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    return tiny_data(tmp_path_factory.mktemp("pairs"), pairs=50)


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(0, 10**7),
    seed=st.integers(0, 2**31 - 1),
    groups=st.integers(1, 5),
    classes=st.integers(2, 6),
    images=st.integers(1, 5),
)
def test_class_batches_are_balanced_distinct_and_a_function_of_their_number(
    number: int, seed: int, groups: int, classes: int, images: int
) -> None:
    index = make_index(groups, classes, images)
    recipe = tiny_recipe(seed=seed, classes_per_batch=4, images_per_class=3)
    batch = ClassBatches(index, recipe)[number]
    again = ClassBatches(index, recipe)[number]
    for one, other in zip(batch, again, strict=True):
        np.testing.assert_array_equal(one, other)
    drawn = min(4, groups * classes)
    assert len(np.unique(batch.labels)) == drawn
    assert len(set(np.bincount(batch.labels))) == 1
    class_of_label = {
        label: set(index.row_class[batch.rows[batch.labels == label]])
        for label in np.unique(batch.labels)
    }
    assert all(len(found) == 1 for found in class_of_label.values())
    assert len(set.union(*class_of_label.values())) == drawn
    if images >= 3 and drawn == 4:
        assert len(np.unique(batch.rows)) == len(batch.rows)
    for label in np.unique(batch.labels):
        of_class = batch.maps[batch.labels == label]
        np.testing.assert_array_equal(of_class, np.broadcast_to(of_class[0], of_class.shape))


def test_the_asked_share_of_classes_comes_from_one_group() -> None:
    index = make_index(groups=8, classes=10, images=2)
    feed = ClassBatches(index, tiny_recipe(classes_per_batch=8, same_group_share=0.5))
    for number in range(50):
        groups = index.row_group[feed[number].rows]
        assert np.bincount(groups).max() >= 4 * 2


def test_classes_of_the_single_group_are_restyled_alike_and_others_each_in_its_own_way() -> None:
    index = make_index(groups=8, classes=10, images=2)
    recipe = tiny_recipe(
        classes_per_batch=8,
        images_per_class=2,
        same_group_share=0.5,
        quarter_turns=False,
        restyling=1,
    )
    feed = ClassBatches(index, recipe)
    mirrored = 0
    for number in range(40):
        maps = feed[number].maps[::2]
        np.testing.assert_array_equal(maps[:4], np.broadcast_to(maps[0], (4, 2, 2)))
        assert len(np.unique(maps[3:].reshape(-1, 4), axis=0)) == 5
        mirrored += int(np.linalg.det(maps[0]) < 0)
    assert 8 <= mirrored <= 32


@pytest.mark.parametrize(("restyling", "share"), [(0.0, 0.0), (0.5, 0.25), (2.0, 0.5)])
def test_in_colour_some_classes_take_another_hue(restyling: float, share: float) -> None:
    index = make_index(groups=8, classes=10, images=2)
    gray = tiny_recipe(classes_per_batch=8, images_per_class=2, restyling=restyling)
    colour = gray.model_copy(update={"color_mode": "rgb"})
    drawings, photos = ClassBatches(index, gray), ClassBatches(index, colour)
    turned = 0
    for number in range(40):
        hues = photos[number].hues
        np.testing.assert_array_equal(hues[::2], hues[1::2])
        assert ((hues >= 0) & (hues < 2 * np.pi)).all()
        turned += np.count_nonzero(hues[::2])
        # All else is as without colours.
        for one, other in zip(drawings[number][:3], photos[number][:3], strict=True):
            np.testing.assert_array_equal(one, other)
        assert not drawings[number].hues.any()
    assert abs(turned / 320 - share) < 0.1


def test_without_restyling_classes_are_only_turned() -> None:
    index = make_index(groups=2, classes=10, images=2)
    feed = ClassBatches(index, tiny_recipe(classes_per_batch=8, images_per_class=2, restyling=0))
    turns = {tuple(quarter_turns(np.array([turn])).ravel()) for turn in range(4)}
    seen = {tuple(one.ravel()) for number in range(20) for one in feed[number].maps}
    assert seen == turns


def test_every_choice_of_images_of_a_class_is_equally_likely() -> None:
    sizes = (4, 5, 2)
    index = ImageIndex.build(
        ImageRef("g", f"g/c{number}", image, f"{image}")
        for number, size in enumerate(sizes)
        for image in range(size)
    )
    feed = ClassBatches(index, tiny_recipe(classes_per_batch=3, images_per_class=3))
    seen: dict[int, Counter[tuple[int, ...]]] = {0: Counter(), 1: Counter(), 2: Counter()}
    for number in range(3000):
        for rows in feed[number].rows.reshape(3, 3):
            of = int(index.row_class[rows[0]])
            seen[of][tuple(np.sort(rows - index.class_start[of]))] += 1
    for of, choices in ((0, 4), (1, 10)):
        assert len(seen[of]) == choices
        assert all(len(set(choice)) == 3 for choice in seen[of])
        # Five standard deviations of a count.
        share = 3000 / choices
        assert all(abs(count - share) < 5 * math.sqrt(share) for count in seen[of].values())
    assert set(seen[2]) == {(0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1)}


def test_few_classes_give_batches_of_the_usual_size() -> None:
    index = make_index(groups=1, classes=3, images=10)
    feed = ClassBatches(index, tiny_recipe(classes_per_batch=6, images_per_class=2))
    assert len(feed[0].rows) == 12


def test_different_numbers_give_different_batches() -> None:
    index = make_index(groups=4, classes=10, images=10)
    feed = ClassBatches(index, tiny_recipe())
    assert len({feed[number].rows.tobytes() for number in range(100)}) == 100


def test_one_class_alone_cannot_be_trained_on() -> None:
    with pytest.raises(InputError, match="two classes"):
        ClassBatches(make_index(1, 1, 5), tiny_recipe())


def test_pair_batches_show_every_pair_once_an_epoch(data: PairData) -> None:
    feed = PairBatches(data, tiny_recipe(loss="pair", classes_per_batch=5, images_per_class=2))
    for epoch in range(2):
        seen = []
        for number in range(10 * epoch, 10 * (epoch + 1)):
            batch = feed[number]
            rows = batch.rows.reshape(2, 5).T
            seen += [(*pair, label) for pair, label in zip(rows, batch.labels, strict=True)]
        expected = [(*pair, label) for pair, label in zip(data.pairs, data.labels, strict=True)]
        assert sorted(seen) == sorted(expected)


def test_pair_batches_do_not_depend_on_what_was_asked_before(data: PairData) -> None:
    recipe = tiny_recipe(loss="pair", classes_per_batch=7, images_per_class=2)
    forward, jump = PairBatches(data, recipe), PairBatches(data, recipe)
    for number in range(20):
        last = forward[number]
    np.testing.assert_array_equal(last.rows, jump[19].rows)


@pytest.mark.parametrize(("loss", "kind"), [("batch", ClassBatches), ("pair", PairBatches)])
def test_the_loss_decides_what_a_batch_is(
    data: PairData, loss: str, kind: Callable[..., object]
) -> None:
    assert type(training_feed(data, tiny_recipe(loss=loss)).batches) is kind


def test_each_row_is_the_drawing_that_its_class_and_writer_say() -> None:
    index, images = generated_images(Preprocessing(35, framing="ink"), alphabets=2, characters=3)
    assert (len(index.groups), len(index.classes), images.shape) == (2, 6, (120, 35, 35, 1))
    assert images.dtype == np.uint8
    drawn = list(draw_alphabet(2, characters=3, writers=20, seed=batches.SEED))
    for row in (60, 79, 119):
        character = int(index.row_class[row]) - 3
        assert index.class_name(row) == f"Generated_002/character{character + 1:02}"
        ink = drawn[character][index.writer(row) - 1]
        # Framed by the ink: a window of 84 pixels, or a little more than the drawing's longer side.
        assert images[row].max() > 200
        side = max(84.0, 1.06 * max(np.ptp(np.argwhere(ink), axis=0) + 1))
        assert images[row].sum() / 255 == pytest.approx(ink.sum() * (35 / side) ** 2, rel=0.1)


def test_the_trainings_of_one_model_draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = generated_images(Preprocessing(16, framing="ink"), alphabets=1, characters=2)
    monkeypatch.setattr(batches, "draw_alphabet", lambda *_, **__: pytest.fail("drawn again"))
    assert generated_images(Preprocessing(16, framing="ink"), alphabets=1, characters=2) is first


def test_a_share_of_the_batches_is_generated_and_points_at_generated_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        batches,
        "generated_images",
        lambda preprocessing: generated_images(preprocessing, alphabets=2, characters=4),
    )
    data = tiny_data(tmp_path)
    recipe = tiny_recipe(generated_share=0.3)
    feed = training_feed(data, recipe)
    assert len(feed.images) == len(data.images) + 160
    np.testing.assert_array_equal(feed.images[: len(data.images)], data.images)
    generated_ones = 0
    for number in range(300):
        rows = feed.batches[number].rows
        kinds = set(rows >= len(data.images))
        assert len(kinds) == 1
        generated_ones += kinds == {True}
        assert rows.max() < len(feed.images)
        np.testing.assert_array_equal(rows, feed.batches[number].rows)
    assert 60 <= generated_ones <= 120


def test_without_a_share_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "generated_images", None)
    data = tiny_data(tmp_path)
    feed = training_feed(data, tiny_recipe(generated_share=0))
    assert feed.images is data.images
    assert isinstance(feed.batches, ClassBatches)
    assert not isinstance(feed.batches, MixedBatches)


def test_pairs_cannot_be_mixed_with_generated_alphabets() -> None:
    with pytest.raises(ValidationError, match="generated_share: must be 0 unless loss is batch"):
        tiny_settings(generated_share=0.5, loss="pair")


def test_no_synthetic_data_set_can_have_the_alphabets_that_are_trained_on() -> None:
    with pytest.raises(ValidationError):
        DatasetSettings(synthetic_seed=batches.SEED)


@pytest.mark.parametrize(("classes", "images"), [(4, 4), (8, 2), (3, 12), (2, 2)])
def test_a_writers_forgeries_are_in_its_batch_each_with_a_label_of_its_own(
    classes: int, images: int
) -> None:
    index = signatures(writers=7, genuine=12, forged=5)
    feed = ClassBatches(index, tiny_recipe(classes_per_batch=classes, images_per_class=images))
    for number in range(20):
        batch = feed[number]
        forged = index.class_forged[index.row_class[batch.rows]]
        counts = np.bincount(batch.labels)
        assert (counts[batch.labels[forged]] == 1).all()
        assert (counts[batch.labels[~forged]] >= 2).all()
        writers = index.row_group[batch.rows]
        assert set(writers[forged]) == set(writers) - {6} or (classes, images) == (2, 2)
        assert len(np.unique(batch.rows)) == len(batch.rows)
        for label in np.unique(batch.labels[~forged]):
            assert len(set(index.row_class[batch.rows[batch.labels == label]])) == 1


def test_forgeries_are_rivals_and_never_positives() -> None:
    """A forgery that looks like its model costs; two that look alike earn nothing."""
    index = signatures(writers=3)
    batch = ClassBatches(index, tiny_recipe(classes_per_batch=3, images_per_class=4))[0]
    forged = index.class_forged[index.row_class[batch.rows]]
    writer = index.row_group[batch.rows]
    labels = tf.constant(batch.labels)

    def loss(at: npt.NDArray[np.float64]) -> float:
        distances = np.abs(at[:, np.newaxis] - at).astype(np.float32)
        return float(batch_contrast(tf.constant(distances), labels))

    apart = loss(10.0 * writer + 5 * forged)
    assert loss(10.0 * writer + 1 * forged) > apart + 0.1
    scattered = 10.0 * writer + 5 * forged + 3 * forged * np.arange(len(forged))
    assert loss(scattered) == pytest.approx(apart, abs=0.01)
