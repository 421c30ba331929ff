import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.protocols import PROTOCOL_WITHIN
from data_ingest.sampling.trials import (
    FewShotTrial,
    NotEnoughClasses,
    classes_left_out,
    few_shot_trials,
    largest_way,
    within_group_trials,
)
from tests.data_ingest.sampling_strategies import index_of, layouts, omniglot_like


def drawn(
    index: ImageIndex, *, way: int, shots: int, trials: int, seed: int = 1
) -> list[FewShotTrial]:
    return list(few_shot_trials(index, way=way, shots=shots, trials=trials, seed=seed))


@settings(deadline=None)
@given(layouts(), st.integers(1, 3), st.integers(0, 2**63 - 1), st.integers(1, 40), st.data())
def test_every_trial_is_sound(
    layout: dict[str, list[list[int]]], shots: int, seed: int, trials: int, data: st.DataObject
) -> None:
    index = index_of(layout)
    largest = largest_way(index, PROTOCOL_WITHIN, shots=shots)
    assume(largest >= 2)
    way = data.draw(st.integers(2, largest))
    found = drawn(index, way=way, shots=shots, trials=trials, seed=seed)
    assert len(found) == len({trial.trial_id for trial in found}) == trials
    for trial in found:
        assert len(trial.references) == way
        assert len(set(trial.rows)) == 1 + way * shots
        for rows in trial.references:
            assert len(rows) == shots
            assert len({index.class_name(row) for row in rows}) == 1
            known = [index.writer(row) for row in rows if index.writer(row)]
            assert len(set(known)) == len(known)
        right = trial.references[trial.answer]
        assert index.class_name(right[0]) == index.class_name(trial.query)
        assert index.writer(trial.query) not in {index.writer(row) for row in right} - {0}
        classes = {index.class_name(rows[0]) for rows in trial.references}
        assert len(classes) == way
        assert len({index.group_name(row) for row in trial.rows}) == 1


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


def test_one_shot_trials_are_the_trials_of_the_one_shot_sampler() -> None:
    index = omniglot_like(groups=3, classes=8, writers=6)
    one_shot = within_group_trials(index, way=5, trials=50, seed=3)
    for few, one in zip(drawn(index, way=5, shots=1, trials=50, seed=3), one_shot, strict=True):
        assert (few.trial_id, few.query, few.answer) == (one.trial_id, one.query, one.answer)
        assert few.references == tuple((row,) for row in one.support)


def test_more_shots_are_added_to_those_of_fewer() -> None:
    index = omniglot_like(groups=3, classes=8, writers=9)
    for three, five in zip(
        drawn(index, way=5, shots=3, trials=50),
        drawn(index, way=5, shots=5, trials=50),
        strict=True,
    ):
        assert (three.trial_id, three.query) == (five.trial_id, five.query)
        assert three.references == tuple(rows[:3] for rows in five.references)


def test_where_all_have_drawn_everything_the_same_writers_show_all_classes() -> None:
    index = omniglot_like(groups=2, classes=8, writers=7)
    hands = set()
    for trial in drawn(index, way=8, shots=3, trials=64):
        (shown,) = {tuple(index.writer(row) for row in rows) for rows in trial.references}
        assert index.writer(trial.query) not in shown
        hands.add(shown)
    assert len(hands) > 1


def test_too_few_drawings_for_the_shots_are_refused_with_what_there_is() -> None:
    index = index_of({"a": [[1, 2, 3, 4, 5, 6]] * 3 + [[1, 2, 3]] * 4})
    with pytest.raises(
        NotEnoughClasses,
        match=r"4-way within trials of 5 shots need 4 classes with 6 images each.*3 are the most",
    ):
        drawn(index, way=4, shots=5, trials=1)
    assert len(drawn(index, way=7, shots=2, trials=7)) == 7
