import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_ingest.sampling.index import ImageIndex, ImageRef, sort_order
from tests.data_ingest.sampling_strategies import index_of, layouts, refs_of


def columns(index: ImageIndex) -> tuple[object, ...]:
    return (
        index.groups,
        index.classes,
        index.class_group.tolist(),
        index.row_class.tolist(),
        index.row_writer.tolist(),
        index.class_start.tolist(),
        index.group_start.tolist(),
    )


@settings(deadline=None)
@given(layouts(), st.randoms(use_true_random=False))
def test_the_order_of_the_files_has_no_influence(
    layout: dict[str, list[list[int]]], rng: random.Random
) -> None:
    refs = refs_of(layout)
    shuffled = list(refs)
    rng.shuffle(shuffled)
    assert columns(ImageIndex.build(shuffled)) == columns(ImageIndex.build(refs))


@settings(deadline=None)
@given(layouts(), st.randoms(use_true_random=False))
def test_rows_are_in_sort_order_and_say_what_each_image_is(
    layout: dict[str, list[list[int]]], rng: random.Random
) -> None:
    refs = refs_of(layout)
    rng.shuffle(refs)
    index = ImageIndex.build(refs)
    assert len(index) == len(refs)
    for row, at in enumerate(sort_order(refs)):
        assert index.class_name(row) == refs[at].class_name
        assert index.group_name(row) == refs[at].group
        assert index.writer(row) == refs[at].writer
        assert row in index.class_rows(int(index.row_class[row]))
        assert int(index.row_class[row]) in index.group_classes(int(index.row_group[row]))


@settings(deadline=None)
@given(layouts(), st.data())
def test_a_subset_holds_the_same_images_as_its_rows(
    layout: dict[str, list[list[int]]], data: st.DataObject
) -> None:
    index = index_of(layout)
    chosen = data.draw(st.sets(st.sampled_from(index.groups)))
    rows = index.rows_of("group", chosen)
    subset = index.take(rows)
    assert set(subset.groups) == chosen
    assert [subset.class_name(row) for row in range(len(subset))] == [
        index.class_name(int(row)) for row in rows
    ]
    assert subset.row_writer.tolist() == index.row_writer[rows].tolist()


def test_a_subset_can_be_taken_by_class() -> None:
    index = index_of({"a": [[1], [1, 2]], "b": [[1]]})
    subset = index.take(index.rows_of("class", ["a/01", "b/00"]))
    assert subset.classes == ("a/01", "b/00")
    assert subset.class_sizes.tolist() == [2, 1]
    assert subset.group_sizes.tolist() == [1, 1]


def test_rows_that_are_not_ascending_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        index_of({"a": [[1, 2]]}).take(np.array([1, 0]))


def test_two_images_of_one_name_in_a_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a/x.*same\.png"):
        ImageIndex.build([ImageRef("a", "a/x", 1, "same.png"), ImageRef("a", "a/x", 2, "same.png")])


def test_a_class_name_shared_by_two_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="named x"):
        ImageIndex.build([ImageRef("a", "x", 1, "1"), ImageRef("b", "x", 1, "1")])


def test_an_index_of_nothing_is_empty() -> None:
    index = ImageIndex.build([])
    assert len(index) == 0
    assert len(index.take(index.rows_of("group", ["a"]))) == 0


def test_forgeries_are_known_beside_genuine_signatures_and_stay_so_in_any_part() -> None:
    names = {
        "a/genuine": False,
        "a/forged": True,
        "b/Genuine": False,
        "b/Skilled": True,
        "c/forged": False,
        "trades/skilled": False,
        "trades/unskilled": False,
    }
    index = ImageIndex.build(ImageRef(name[0], name, 0, "1") for name in names)
    assert dict(zip(index.classes, index.class_forged.tolist(), strict=True)) == names
    assert [index.classes[at] for at in index.genuine] == [n for n, bad in names.items() if not bad]
    alone = index.take(index.rows_of("class", ["a/forged"]))
    assert alone.has_forgeries
    ungrouped = ImageIndex.build(ImageRef("", name, 0, "1") for name in ("forged", "genuine"))
    assert not ungrouped.has_forgeries
