"""On which side the groups of arriving images are, whatever arrives in which order."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_ingest.errors import InputError
from data_ingest.records.catalog import BACKGROUND, EVALUATION
from data_ingest.sampling.index import ImageIndex, Unit
from data_ingest.sampling.splits import unit_of
from data_ingest.settings import PairSettings
from data_ingest.spans.sides import Side, new_sides, require_like_layout, side_rows
from tests.data_ingest.sampling_strategies import index_of, omniglot_like, signatures

Layout = Mapping[str, Sequence[Sequence[int]]]
HANDS = [1, 2]


def arrivals() -> st.SearchStrategy[list[dict[str, list[list[int]]]]]:
    """Spans, each some of twelve groups with two to six classes drawn by two hands."""
    group = st.integers(2, 6).map(lambda classes: [HANDS] * classes)
    names = st.sampled_from([f"group{number}" for number in range(12)])
    span = st.dictionaries(names, group, min_size=1, max_size=6)
    return st.lists(span, min_size=1, max_size=8)


def assigned(spans: Sequence[Layout], settings: PairSettings) -> list[dict[str, Side]]:
    """What is known after each span."""
    known: dict[str, Side] = {}
    unit: Unit | None = None
    history = []
    for layout in spans:
        index = index_of(layout)
        unit = unit or unit_of(index)
        known = {**known, **new_sides(index, known, settings, unit=unit)}
        history.append(known)
    return history


@given(arrivals(), st.integers(0, 100), st.floats(0.05, 0.95))
def test_a_side_is_given_once_and_to_everything_that_is_new(
    spans: list[dict[str, list[list[int]]]], seed: int, share: float
) -> None:
    settings = PairSettings(seed=seed, evaluation_share=share)
    known: dict[str, Side] = {}
    unit = unit_of(index_of(spans[0]))
    for layout in spans:
        index = index_of(layout)
        names = set(index.groups if unit == "group" else index.classes)
        new = new_sides(index, known, settings, unit=unit)
        assert set(new) == names - set(known)
        known |= new
        rows = side_rows(index, known, unit)
        # Groups of earlier spans that are not in this one are in `known` all the same.
        assert sorted([*rows[BACKGROUND], *rows[EVALUATION]]) == list(range(len(index)))


@given(arrivals(), st.integers(0, 100), st.floats(0.05, 0.95))
def test_no_class_is_ever_on_two_sides(
    spans: list[dict[str, list[list[int]]]], seed: int, share: float
) -> None:
    settings = PairSettings(seed=seed, evaluation_share=share)
    unit = unit_of(index_of(spans[0]))
    trained: set[str] = set()
    judged: set[str] = set()
    for layout, known in zip(spans, assigned(spans, settings), strict=True):
        index = index_of(layout)
        rows = side_rows(index, known, unit)
        trained |= set(index.take(rows[BACKGROUND]).classes)
        judged |= set(index.take(rows[EVALUATION]).classes)
    assert not trained & judged


@given(arrivals(), st.integers(0, 100), st.floats(0.05, 0.95))
def test_the_share_for_evaluation_is_as_asked_after_every_span(
    spans: list[dict[str, list[list[int]]]], seed: int, share: float
) -> None:
    settings = PairSettings(seed=seed, evaluation_share=share)
    for known in assigned(spans, settings):
        count = sum(side == EVALUATION for side in known.values())
        ideal = share * len(known)
        # The first span needs at least one group, or two classes, for evaluation.
        assert count >= 1
        assert count <= max(ideal + 0.5, 2)


@given(arrivals(), st.randoms())
def test_the_order_of_files_does_not_matter(
    spans: list[dict[str, list[list[int]]]], random
) -> None:  # type: ignore[no-untyped-def]
    def shuffled(layout: Layout) -> dict[str, Sequence[Sequence[int]]]:
        items = list(layout.items())
        random.shuffle(items)
        return dict(items)

    settings = PairSettings()
    assert assigned(spans, settings) == assigned([shuffled(span) for span in spans], settings)


def test_a_group_with_enough_classes_for_the_widest_trial_is_kept_for_evaluation() -> None:
    index = index_of({"small1": [HANDS] * 3, "small2": [HANDS] * 4, "wide": [HANDS] * 20})
    sides = new_sides(index, {}, PairSettings(), unit="group")
    assert sides == {"wide": EVALUATION, "small1": BACKGROUND, "small2": BACKGROUND}


def test_with_fewer_than_three_groups_at_first_classes_keep_their_side() -> None:
    first = omniglot_like(groups=2, classes=5, writers=2)
    assert unit_of(first) == "class"
    known = new_sides(first, {}, PairSettings(), unit="class")
    assert sum(side == EVALUATION for side in known.values()) == 3
    more = omniglot_like(groups=4, classes=5, writers=2)
    new = new_sides(more, known, PairSettings(), unit="class")
    assert set(new) == set(more.classes) - set(first.classes)


def test_of_classes_with_several_images_most_are_left_to_train_on() -> None:
    index = index_of({"": [[1, 2]] * 10 + [[1]] * 40})
    sides = new_sides(index, {}, PairSettings(), unit="class")
    judged = index.take(side_rows(index, sides, "class")[EVALUATION])
    assert judged.class_sizes.tolist() == [2, 2, 2]


def test_a_first_span_gives_evaluation_classes_that_can_be_told_apart() -> None:
    index = index_of({"": [[1], [1, 2], [1], [1, 2], [1, 2], [1, 2]]})
    sides = new_sides(index, {}, PairSettings(evaluation_share=0.01), unit="class")
    judged = index.take(side_rows(index, sides, "class")[EVALUATION])
    assert len(judged.classes) == 2
    assert judged.class_sizes.max() == 2


@pytest.mark.parametrize(
    ("groups", "known", "unit"),
    [
        ([""], {"Greek": BACKGROUND}, "group"),
        ([""], {"Greek/alpha": BACKGROUND}, "class"),
        (["Greek"], {"alpha": BACKGROUND}, "class"),
    ],
)
def test_images_with_groups_and_without_are_not_mixed(
    groups: list[str], known: dict[str, Side], unit: Unit
) -> None:
    with pytest.raises(InputError, match="lay them out alike"):
        require_like_layout(groups, known, unit)


def test_groups_that_are_all_known_change_nothing() -> None:
    index: ImageIndex = omniglot_like(groups=3, classes=2, writers=2)
    known = new_sides(index, {}, PairSettings(), unit="group")
    assert new_sides(index, known, PairSettings(evaluation_share=0.9), unit="group") == {}


def test_forgeries_keep_the_side_of_their_writer_however_few_there_are() -> None:
    first = signatures(writers=2)
    assert unit_of(first) == "group"
    more = signatures(writers=9)
    known = new_sides(more, {}, PairSettings(), unit="group")
    for rows in side_rows(more, known, "group").values():
        part = more.take(rows)
        assert len(part.groups) >= 2
        assert sum(part.class_forged) == sum(name != "w08" for name in part.groups)
