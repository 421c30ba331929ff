from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.protocols import PROTOCOL_BETWEEN, PROTOCOL_WITHIN
from data_ingest.sampling.trials import (
    NotEnoughClasses,
    Trial,
    available_protocols,
    between_group_trials,
    effective_ways,
    largest_way,
    within_group_trials,
)
from data_ingest.settings import PairSettings
from tests.data_ingest.sampling_strategies import index_of, layouts, omniglot_like

SAMPLERS = {PROTOCOL_WITHIN: within_group_trials, PROTOCOL_BETWEEN: between_group_trials}
protocols = st.sampled_from(sorted(SAMPLERS))


def drawn(index: ImageIndex, protocol: str, *, way: int, trials: int, seed: int = 1) -> list[Trial]:
    return list(SAMPLERS[protocol](index, way=way, trials=trials, seed=seed))


@settings(deadline=None)
@given(layouts(), protocols, st.integers(0, 2**63 - 1), st.integers(1, 40), st.data())
def test_every_trial_is_sound(
    layout: dict[str, list[list[int]]],
    protocol: str,
    seed: int,
    trials: int,
    data: st.DataObject,
) -> None:
    index = index_of(layout)
    largest = largest_way(index, protocol)
    assume(largest >= 2)
    way = data.draw(st.integers(2, largest))
    found = drawn(index, protocol, way=way, trials=trials, seed=seed)
    assert len(found) == trials
    assert len({trial.trial_id for trial in found}) == trials
    for trial in found:
        classes = [index.class_name(row) for row in trial.support]
        assert trial.way == len(classes) == len(set(classes)) == way
        assert classes[trial.answer] == index.class_name(trial.query)
        assert trial.query not in trial.support
        writers = {index.writer(trial.query), index.writer(trial.support[trial.answer])}
        assert 0 in writers or len(writers) == 2
        groups = {index.group_name(row) for row in trial.support}
        assert (len(groups) == 1) == (protocol == PROTOCOL_WITHIN)


@pytest.mark.parametrize("protocol", sorted(SAMPLERS))
def test_all_candidates_are_of_one_writer_and_the_query_of_another(protocol: str) -> None:
    index = omniglot_like(groups=4, classes=8, writers=6)
    for trial in drawn(index, protocol, way=8, trials=64):
        (hand,) = {index.writer(row) for row in trial.support}
        assert index.writer(trial.query) != hand


@pytest.mark.parametrize("protocol", sorted(SAMPLERS))
def test_the_right_answer_is_at_every_position_about_equally_often(protocol: str) -> None:
    index = omniglot_like(groups=4, classes=8, writers=6)
    answers = Counter(trial.answer for trial in drawn(index, protocol, way=5, trials=1000))
    assert set(answers) == set(range(5))
    assert 150 < min(answers.values()) <= max(answers.values()) < 250


def test_the_first_query_of_a_set_is_not_always_answered_at_the_same_place() -> None:
    index = omniglot_like(groups=4, classes=8, writers=6)
    trials = drawn(index, PROTOCOL_WITHIN, way=5, trials=100)
    assert len({trial.answer for trial in trials[::5]}) > 1


def test_koch_400_trials_are_40_of_each_of_10_alphabets() -> None:
    index = omniglot_like(groups=10, classes=25, writers=20)
    trials = drawn(index, PROTOCOL_WITHIN, way=20, trials=400)
    by_group = Counter(index.group_name(trial.query) for trial in trials)
    assert set(by_group.values()) == {40}
    assert len(by_group) == 10


def test_groups_with_too_few_classes_are_passed_over() -> None:
    index = index_of({"small": [[1, 2]] * 3, "large": [[1, 2]] * 6, "lone": [[1, 2]]})
    trials = drawn(index, PROTOCOL_WITHIN, way=5, trials=20)
    assert {index.group_name(trial.query) for trial in trials} == {"large"}


def test_between_group_candidates_are_spread_over_the_groups() -> None:
    index = omniglot_like(groups=10, classes=8, writers=4)
    for trial in drawn(index, PROTOCOL_BETWEEN, way=20, trials=40):
        groups = Counter(index.group_name(row) for row in trial.support)
        assert set(groups.values()) == {2}


def test_each_candidate_of_a_set_is_queried_once() -> None:
    index = omniglot_like(groups=3, classes=8, writers=4)
    trials = drawn(index, PROTOCOL_WITHIN, way=6, trials=12)
    for first in (0, 6):
        one_set = trials[first : first + 6]
        assert len({trial.support for trial in one_set}) == 1
        assert sorted(trial.answer for trial in one_set) == list(range(6))


def test_where_no_two_writers_share_enough_classes_each_class_still_has_two() -> None:
    scattered = [[1, 2], [3, 4], [5, 6], [1, 6]]
    index = index_of({"a": scattered})
    for trial in drawn(index, PROTOCOL_WITHIN, way=4, trials=40):
        assert index.writer(trial.query) != index.writer(trial.support[trial.answer])


def test_a_class_drawn_by_one_writer_alone_takes_no_part() -> None:
    index = index_of({"a": [[1, 2], [2, 1], [3, 3]]})
    assert largest_way(index, PROTOCOL_WITHIN) == 2
    classes = {
        index.class_name(row)
        for trial in drawn(index, PROTOCOL_WITHIN, way=2, trials=20)
        for row in trial.support
    }
    assert classes == {"a/00", "a/01"}


def test_trials_follow_the_seed_and_fewer_trials_are_the_first_of_more() -> None:
    index = omniglot_like(groups=4, classes=8, writers=6)
    trials = drawn(index, PROTOCOL_WITHIN, way=5, trials=50)
    assert drawn(index, PROTOCOL_WITHIN, way=5, trials=50) == trials
    assert drawn(index, PROTOCOL_WITHIN, way=5, trials=23) == trials[:23]
    assert drawn(index, PROTOCOL_WITHIN, way=5, trials=50, seed=2) != trials


def test_too_wide_a_trial_is_refused_with_what_there_is() -> None:
    index = omniglot_like(groups=2, classes=4, writers=3)
    with pytest.raises(NotEnoughClasses, match=r"5-way within trials.*4 are the most"):
        drawn(index, PROTOCOL_WITHIN, way=5, trials=1)
    with pytest.raises(NotEnoughClasses, match=r"9-way between trials.*8 are the most"):
        drawn(index, PROTOCOL_BETWEEN, way=9, trials=1)


def test_one_group_gives_no_trials_between_groups() -> None:
    index = omniglot_like(groups=1, classes=4, writers=3)
    assert largest_way(index, PROTOCOL_BETWEEN) == 0
    assert largest_way(index, PROTOCOL_WITHIN) == 4


def test_ways_that_the_data_lacks_become_the_largest_it_has() -> None:
    index = omniglot_like(groups=1, classes=3, writers=2)
    assert effective_ways(index, PROTOCOL_WITHIN, (20, 5)) == (3,)
    index = omniglot_like(groups=2, classes=12, writers=2)
    assert effective_ways(index, PROTOCOL_WITHIN, (20, 5)) == (12, 5)
    assert effective_ways(index, PROTOCOL_BETWEEN, (20, 5)) == (20, 5)


def test_the_protocols_of_three_digits_without_groups() -> None:
    index = index_of({"": [[0] * 4] * 3})
    found = available_protocols(index, PairSettings(), official_ways=[20])
    assert found == {("verification", 0), ("official", 20), ("within", 3)}


def test_protocols_with_no_trials_asked_for_are_not_available() -> None:
    index = omniglot_like(groups=3, classes=6, writers=3)
    chosen = PairSettings(within_trials=0, ways=(5,))
    assert available_protocols(index, chosen) == {("verification", 0), ("between", 5)}
