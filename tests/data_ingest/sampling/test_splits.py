import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_ingest.errors import InputError
from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.splits import SplitRows, split_index
from data_ingest.settings import PairSettings
from tests.data_ingest.sampling_strategies import (
    divisible_layouts,
    index_of,
    layouts,
    omniglot_like,
    signatures,
)


def named(index: ImageIndex, rows: object) -> tuple[set[str], set[str]]:
    part = index.take(rows)  # type: ignore[arg-type]
    return set(part.groups), set(part.classes)


def require_division(index: ImageIndex, rows: SplitRows, *, groups_divide: bool) -> None:
    """Every class in one split, from three groups on every group too, and pairs in each."""
    parts = [named(index, part) for part in (rows.train, rows.eval, rows.one_shot)]
    assert sum(len(classes) for _, classes in parts) == len(index.classes)
    assert set().union(*(classes for _, classes in parts)) == set(index.classes)
    if groups_divide and len(index.groups) >= 3:
        assert sum(len(groups) for groups, _ in parts) == len(index.groups)
    for _, classes in parts:
        sizes = index.take(index.rows_of("class", classes)).class_sizes
        assert len(classes) >= 2
        assert sizes.max() >= 2


@settings(deadline=None)
@given(layouts(max_groups=8), st.integers(0, 100), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_no_class_is_in_two_splits(
    layout: dict[str, list[list[int]]], seed: int, evaluation: float, holdout: float
) -> None:
    index = index_of(layout)
    chosen = PairSettings(seed=seed, evaluation_share=evaluation, holdout_share=holdout)
    try:
        rows = split_index(index, None, chosen)
    except InputError as refused:
        if "too few classes" not in str(refused):
            raise
    else:
        require_division(index, rows, groups_divide=False)


@settings(deadline=None)
@given(divisible_layouts(), st.integers(0, 100), st.floats(0.01, 0.3), st.floats(0.01, 0.5))
def test_what_three_splits_can_share_is_divided_and_no_group_is_in_two(
    layout: dict[str, list[list[int]]], seed: int, evaluation: float, holdout: float
) -> None:
    index = index_of(layout)
    chosen = PairSettings(seed=seed, evaluation_share=evaluation, holdout_share=holdout)
    require_division(index, split_index(index, None, chosen), groups_divide=True)


def test_a_tenth_of_the_background_alphabets_is_held_out() -> None:
    background = omniglot_like(groups=30, classes=4, writers=2)
    evaluation = index_of({"new": [[1, 2]] * 4})
    rows = split_index(background, evaluation, PairSettings())
    assert len(named(background, rows.eval)[0]) == 3
    assert len(named(background, rows.train)[0]) == 27
    assert rows.one_shot.tolist() == list(range(len(evaluation)))


def test_alphabets_wide_enough_for_the_trials_are_held_out_first() -> None:
    small = {f"small{number}": [[1, 2]] * 4 for number in range(8)}
    background = index_of(small | {"large": [[1, 2]] * 20})
    rows = split_index(background, index_of({"new": [[1, 2]] * 2}), PairSettings())
    assert named(background, rows.eval)[0] == {"large"}


def test_another_seed_holds_out_other_alphabets() -> None:
    background = omniglot_like(groups=30, classes=4, writers=2)
    held_out = {
        frozenset(named(background, split_index(background, None, PairSettings(seed=seed)).eval)[0])
        for seed in range(5)
    }
    assert len(held_out) > 1


def test_an_alphabet_seldom_changes_sides_when_another_is_added() -> None:
    before = omniglot_like(groups=20, classes=4, writers=2)
    after = omniglot_like(groups=21, classes=4, writers=2)
    evaluation = index_of({"new": [[1, 2]] * 4})
    old = named(before, split_index(before, evaluation, PairSettings()).eval)[0]
    new = named(after, split_index(after, evaluation, PairSettings()).eval)[0]
    assert len(old & new) >= 1


def test_digits_without_groups_are_divided_by_class() -> None:
    digits = index_of({"": [[0] * 5] * 10})
    rows = split_index(digits, None, PairSettings())
    sizes = [len(named(digits, part)[1]) for part in (rows.train, rows.eval, rows.one_shot)]
    assert sizes == [5, 2, 3]


def test_alphabets_of_one_character_do_not_stop_a_split() -> None:
    lone = {f"lone{number}": [[1, 2]] for number in range(9)}
    index = index_of(lone)
    rows = split_index(index, None, PairSettings())
    for part in (rows.train, rows.eval, rows.one_shot):
        assert len(named(index, part)[1]) >= 2


def test_classes_of_one_image_are_trained_on_and_leave_the_others_to_be_divided() -> None:
    digits = index_of({"": [[0] * 9000] + [[0] * 3] * 7 + [[0]] * 40})
    rows = split_index(digits, None, PairSettings())
    usable = [
        int(np.count_nonzero(digits.take(part).class_sizes >= 2))
        for part in (rows.train, rows.eval, rows.one_shot)
    ]
    assert usable == [4, 2, 2]
    assert len(named(digits, rows.train)[1]) == 44


def test_groups_too_unequal_to_be_divided_are_divided_by_class() -> None:
    index = index_of({"letters": [[0, 0]] * 40, "stray": [[0, 0]], "other": [[0, 0]]})
    rows = split_index(index, None, PairSettings())
    sizes = [len(named(index, part)[1]) for part in (rows.train, rows.eval, rows.one_shot)]
    assert sizes == [24, 5, 13]


def test_too_few_classes_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"3 splits need.*there are 4 classes.*a/00"):
        split_index(index_of({"a": [[1, 2]] * 4}), None, PairSettings())


def test_a_class_that_is_both_background_and_evaluation_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="such as group00/00"):
        split_index(
            omniglot_like(groups=4, classes=4, writers=2),
            omniglot_like(groups=1, classes=4, writers=2),
            PairSettings(),
        )


def test_forgeries_stay_with_their_writer_and_every_split_has_two_writers() -> None:
    index = signatures(writers=6)
    rows = split_index(index, None, PairSettings(evaluation_share=0.1))
    parts = [named(index, part) for part in rows]
    assert [len(groups) for groups, _ in parts] == [2, 2, 2]
    for groups, classes in parts:
        assert {name for name in index.classes if name.partition("/")[0] in groups} == classes


def test_too_few_writers_are_refused_and_not_torn_apart() -> None:
    for writers in (2, 5):
        with pytest.raises(InputError, match=f"too few writers.*there are {writers} "):
            split_index(signatures(writers=writers), None, PairSettings())


@pytest.mark.parametrize(
    ("classes", "held_out"), [(10, 1), (25, 5), (60, 10), (100, 10), (300, 30)]
)
def test_of_few_classes_up_to_a_fifth_is_held_out(classes: int, held_out: int) -> None:
    background = index_of({"": [[1, 2]] * classes})
    rows = split_index(background, index_of({"new": [[1, 2]] * 2}), PairSettings())
    assert len(named(background, rows.eval)[1]) == max(held_out, 2)
