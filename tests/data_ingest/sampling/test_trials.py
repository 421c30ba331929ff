from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.protocols import PROTOCOL_BETWEEN, PROTOCOL_WITHIN
from data_ingest.sampling.trials import (
    NotEnoughClasses,
    Trial,
    classes_left_out,
    draw_trials,
    largest_way,
    sampled_trials,
    sound_trials,
)
from data_ingest.settings import PairSettings
from tests.data_ingest.sampling_strategies import index_of, layouts, omniglot_like, signatures

PROTOCOLS = (PROTOCOL_BETWEEN, PROTOCOL_WITHIN)


def drawn(
    index: ImageIndex, protocol: str, *, way: int, trials: int, seed: int = 1, shots: int = 1
) -> list[Trial]:
    return list(draw_trials(index, protocol, way=way, trials=trials, seed=seed, shots=shots))


def candidates(trial: Trial) -> list[int]:
    """The rows of a trial of one shot."""
    return [row for (row,) in trial.support]


@settings(deadline=None)
@given(
    layouts(), st.sampled_from(PROTOCOLS), st.integers(0, 2**63 - 1), st.integers(1, 40), st.data()
)
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
        classes = [index.class_name(row) for row in candidates(trial)]
        assert trial.way == len(classes) == len(set(classes)) == way
        assert classes[trial.answer] == index.class_name(trial.query)
        assert trial.query not in candidates(trial)
        writers = {index.writer(trial.query), index.writer(candidates(trial)[trial.answer])}
        assert 0 in writers or len(writers) == 2
        groups = {index.group_name(row) for row in candidates(trial)}
        assert (len(groups) == 1) == (protocol == PROTOCOL_WITHIN)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_candidates_are_of_one_writer_and_the_query_of_another(protocol: str) -> None:
    index = omniglot_like(groups=4, classes=8, writers=6)
    for trial in drawn(index, protocol, way=8, trials=64):
        (hand,) = {index.writer(row) for row in candidates(trial)}
        assert index.writer(trial.query) != hand


@pytest.mark.parametrize("protocol", PROTOCOLS)
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
        groups = Counter(index.group_name(row) for row in candidates(trial))
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
        assert index.writer(trial.query) != index.writer(candidates(trial)[trial.answer])


def test_a_class_drawn_by_one_writer_alone_takes_no_part() -> None:
    index = index_of({"a": [[1, 2], [2, 1], [3, 3]]})
    assert largest_way(index, PROTOCOL_WITHIN) == 2
    classes = {
        index.class_name(row)
        for trial in drawn(index, PROTOCOL_WITHIN, way=2, trials=20)
        for row in candidates(trial)
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
    asked = PairSettings(ways=(20, 5), within_trials=7, between_trials=9)
    index = omniglot_like(groups=1, classes=3, writers=2)
    assert list(sampled_trials(index, asked)) == [(PROTOCOL_WITHIN, 3, 7)]
    index = omniglot_like(groups=2, classes=12, writers=2)
    assert list(sampled_trials(index, asked)) == [
        (PROTOCOL_WITHIN, 12, 7),
        (PROTOCOL_WITHIN, 5, 7),
        (PROTOCOL_BETWEEN, 20, 9),
        (PROTOCOL_BETWEEN, 5, 9),
    ]


def test_three_digits_without_groups_give_trials_within() -> None:
    index = index_of({"": [[0] * 4] * 3})
    assert list(sampled_trials(index, PairSettings())) == [(PROTOCOL_WITHIN, 3, 400)]


def test_a_protocol_with_no_trials_asked_for_gives_none() -> None:
    index = omniglot_like(groups=3, classes=6, writers=3)
    chosen = PairSettings(within_trials=0, ways=(5,))
    assert list(sampled_trials(index, chosen)) == [(PROTOCOL_BETWEEN, 5, 400)]


def test_given_trials_are_renumbered_and_those_that_lack_an_image_left_out() -> None:
    given_trials = [Trial("a", 5, ((2,), (9,)), 0), Trial("b", 7, ((2,), (5,)), 1)]
    assert sound_trials(given_trials, [9, 5, 2]) == [Trial("a", 1, ((2,), (0,)), 0)]


@settings(deadline=None)
@given(layouts(), st.integers(1, 3), st.integers(0, 2**63 - 1), st.integers(1, 40), st.data())
def test_every_trial_of_several_shots_is_sound(
    layout: dict[str, list[list[int]]], shots: int, seed: int, trials: int, data: st.DataObject
) -> None:
    index = index_of(layout)
    largest = largest_way(index, PROTOCOL_WITHIN, shots=shots)
    assume(largest >= 2)
    way = data.draw(st.integers(2, largest))
    found = drawn(index, PROTOCOL_WITHIN, way=way, shots=shots, trials=trials, seed=seed)
    assert len(found) == len({trial.trial_id for trial in found}) == trials
    for trial in found:
        assert trial.way == way
        assert len(set(trial.images)) == 1 + way * shots
        for rows in trial.support:
            assert len(rows) == shots
            assert len({index.class_name(row) for row in rows}) == 1
            known = [index.writer(row) for row in rows if index.writer(row)]
            assert len(set(known)) == len(known)
        right = trial.support[trial.answer]
        assert index.class_name(right[0]) == index.class_name(trial.query)
        assert index.writer(trial.query) not in {index.writer(row) for row in right} - {0}
        classes = {index.class_name(rows[0]) for rows in trial.support}
        assert len(classes) == way
        assert len({index.group_name(row) for row in trial.images}) == 1


@given(layouts(), st.integers(1, 4))
def test_a_class_is_left_out_where_too_few_of_its_images_can_be_by_different_writers(
    layout: dict[str, list[list[int]]], shots: int
) -> None:
    index = index_of(layout)
    too_few = [
        f"{group}/{number:02d}"
        for group, classes in sorted(layout.items())
        for number, writers in enumerate(classes)
        if len({writer for writer in writers if writer}) + writers.count(0) <= shots
    ]
    assert classes_left_out(index, shots=shots) == too_few


@pytest.mark.parametrize(("fewer", "more"), [(1, 2), (3, 5)])
def test_more_shots_are_added_to_those_of_fewer(fewer: int, more: int) -> None:
    index = omniglot_like(groups=3, classes=8, writers=9)
    for few, many in zip(
        drawn(index, PROTOCOL_WITHIN, way=5, shots=fewer, trials=50),
        drawn(index, PROTOCOL_WITHIN, way=5, shots=more, trials=50),
        strict=True,
    ):
        assert (few.trial_id, few.query, few.answer) == (many.trial_id, many.query, many.answer)
        assert few.support == tuple(rows[:fewer] for rows in many.support)


def test_where_all_have_drawn_everything_the_same_writers_show_all_classes() -> None:
    index = omniglot_like(groups=2, classes=8, writers=7)
    hands = set()
    for trial in drawn(index, PROTOCOL_WITHIN, way=8, shots=3, trials=64):
        (shown,) = {tuple(index.writer(row) for row in rows) for rows in trial.support}
        assert index.writer(trial.query) not in shown
        hands.add(shown)
    assert len(hands) > 1


def test_too_few_drawings_for_the_shots_are_refused_with_what_there_is() -> None:
    index = index_of({"a": [[1, 2, 3, 4, 5, 6]] * 3 + [[1, 2, 3]] * 4})
    with pytest.raises(
        NotEnoughClasses,
        match=r"4-way within trials of 5 shots need 4 classes with 6 images each.*3 are the most",
    ):
        drawn(index, PROTOCOL_WITHIN, way=4, shots=5, trials=1)
    assert len(drawn(index, PROTOCOL_WITHIN, way=7, shots=2, trials=7)) == 7


def test_of_forgeries_nothing_is_asked() -> None:
    index = signatures(writers=6)
    assert largest_way(index, PROTOCOL_WITHIN) == 0
    trials = drawn(index, PROTOCOL_BETWEEN, way=6, shots=2, trials=30)
    images = sorted({row for trial in trials for row in trial.images})
    assert not index.class_forged[index.row_class[images]].any()
    assert classes_left_out(index, shots=1) == []
    assert classes_left_out(index, shots=4) == [index.classes[at] for at in index.genuine]
