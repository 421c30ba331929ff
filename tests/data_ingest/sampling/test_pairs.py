import hashlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_ingest.errors import InputError
from data_ingest.sampling.pairs import (
    Pairs,
    PairSampler,
    pair_sampler,
)
from data_ingest.settings import PairSettings
from tests.data_ingest.sampling_strategies import index_of, layouts, omniglot_like, signatures


def sampler_over(
    layout: dict[str, list[list[int]]], *, seed: int = 1, share: float = 0.5
) -> PairSampler:
    sampler = PairSampler(index_of(layout), seed, "test", share)
    try:
        sampler.check("here")
    except InputError:
        assume(False)
    return sampler


@settings(deadline=None)
@given(layouts(), st.integers(0, 2**63 - 1), st.floats(0, 1), st.integers(1, 80))
def test_labels_are_right_half_are_same_and_no_image_meets_itself(
    layout: dict[str, list[list[int]]], seed: int, share: float, half: int
) -> None:
    sampler = sampler_over(layout, seed=seed, share=share)
    pairs = sampler.pairs(0, 2 * half)
    row_class = sampler.index.row_class
    assert pairs.label.sum() == half
    assert ((row_class[pairs.row_a] == row_class[pairs.row_b]) == (pairs.label == 1)).all()
    assert (pairs.row_a != pairs.row_b).all()


@settings(deadline=None)
@given(layouts(), st.integers(0, 100), st.integers(0, 60), st.integers(0, 60))
def test_a_pair_depends_on_its_number_alone(
    layout: dict[str, list[list[int]]], start: int, before: int, after: int
) -> None:
    sampler = sampler_over(layout)
    whole = sampler.pairs(start, start + before + after)
    pieces = [
        sampler.pairs(start, start + before),
        sampler.pairs(start + before, start + before + after),
    ]
    for column, parts in zip(whole, zip(*pieces, strict=True), strict=True):
        assert list(column) == [value for part in parts for value in part]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_the_configured_share_of_different_pairs_lies_within_one_group(share: float) -> None:
    index = omniglot_like(groups=4, classes=6, writers=3)
    pairs = PairSampler(index, 1, "test", share).pairs(0, 4000)
    different = pairs.label == 0
    group = index.row_group
    within = group[pairs.row_a[different]] == group[pairs.row_b[different]]
    assert within.sum() == pytest.approx(share * 2000, abs=1)


def test_lone_classes_are_paired_with_other_groups_and_lone_images_with_other_classes() -> None:
    """An alphabet of one character, and a character drawn once, are still of use."""
    index = index_of({"lone": [[1]], "full": [[1, 2], [1, 2]]})
    pairs = PairSampler(index, 1, "test", 0.5).pairs(0, 400)
    lone = index.row_group == index.groups.index("lone")
    meets_lone = lone[pairs.row_a] | lone[pairs.row_b]
    assert meets_lone[pairs.label == 0].any()
    assert not meets_lone[pairs.label == 1].any()


def test_images_without_groups_give_different_pairs_as_well() -> None:
    index = index_of({"": [[0, 0, 0]] * 4})
    pairs = PairSampler(index, 1, "test", 0.2).pairs(0, 100)
    assert (pairs.label == 0).sum() == 50


def test_all_classes_and_images_are_drawn_about_equally_often() -> None:
    index = omniglot_like(groups=3, classes=5, writers=4)
    pairs = PairSampler(index, 2, "test", 0.5).pairs(0, 30_000)
    counts = np.bincount(np.concatenate([pairs.row_a, pairs.row_b]), minlength=len(index))
    assert counts.min() > 0.85 * counts.mean()
    assert counts.max() < 1.15 * counts.mean()


def test_training_and_verification_pairs_differ_and_follow_the_seed() -> None:
    index = omniglot_like(groups=3, classes=5, writers=4)

    def drawn(sampler: PairSampler) -> list[list[object]]:
        pairs: Pairs = sampler.pairs(0, 50)
        return [list(column) for column in pairs]

    settings = PairSettings(seed=1)
    train = drawn(pair_sampler(index, settings, split="train"))
    assert drawn(pair_sampler(index, settings, split="train")) == train
    assert drawn(pair_sampler(index, PairSettings(seed=2), split="train")) != train
    assert drawn(pair_sampler(index, settings, split="eval")) != train


def test_a_class_alone_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"training images.*at least two classes.*a/00"):
        PairSampler(index_of({"a": [[1, 2]]}), 1, "test", 0.5).check("training images")


def test_classes_of_one_image_each_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="none of the 2 classes, such as a/00"):
        PairSampler(index_of({"a": [[1], [2]]}), 1, "test", 0.5).check("training images")


def test_as_many_pairs_as_koch_used_take_no_time() -> None:
    index = omniglot_like(groups=30, classes=30, writers=20)
    pairs = PairSampler(index, 1, "test", 0.5).pairs(0, 150_000)
    assert len(pairs.label) == 150_000
    assert pairs.label.sum() == 75_000


@pytest.mark.parametrize(("share", "forgeries"), [(0.0, 0), (0.5, 500), (1.0, 1000)])
def test_forgeries_are_different_from_their_writers_signatures_and_nothing_else(
    share: float, forgeries: int
) -> None:
    index = signatures(writers=5)
    pairs = PairSampler(index, 1, "test", share).pairs(0, 2000)
    forged = index.class_forged[index.row_class]
    a, b = forged[pairs.row_a], forged[pairs.row_b]
    assert not a.any()
    assert not b[pairs.label == 1].any()
    assert b.sum() == forgeries
    same_writer = index.row_group[pairs.row_a] == index.row_group[pairs.row_b]
    np.testing.assert_array_equal(same_writer[pairs.label == 0], b[pairs.label == 0])


def test_forgeries_alone_make_no_pairs() -> None:
    index = signatures(writers=3, genuine=1)
    with pytest.raises(InputError, match="none of the 3 classes, such as w00/genuine"):
        PairSampler(index, 1, "test", 0.5).check("here")


def test_pairs_without_forgeries_are_what_they_have_always_been() -> None:
    digest = hashlib.blake2b(digest_size=8)
    gaps = index_of({f"g{at}": [[1, 2, 3], [1], [2, 3]][: 1 + at % 3] for at in range(9)})
    for index in (omniglot_like(groups=6, classes=7, writers=4), gaps):
        for split in ("train", "eval"):
            for column in pair_sampler(index, PairSettings(), split=split).pairs(0, 5000)[:3]:
                digest.update(np.asarray(column).tobytes())
    assert digest.hexdigest() == "54d93afe775f4dfd"
