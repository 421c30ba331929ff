"""Which earlier model counts: the latest that was pushed and not rolled back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tfx.types import standard_artifacts

from components.pusher.earlier_models import PushedModelStrategy
from components.pusher.pushed_models import MODEL_ID, ROLLED_BACK


def model(number: int, *, rolled_back: bool = False) -> standard_artifacts.Model:
    artifact = standard_artifacts.Model()
    artifact.id = number
    if rolled_back:
        artifact.set_string_custom_property(ROLLED_BACK, "version 1 was rolled back")
    return artifact


def push_of(number: int, *, pushed: bool = True) -> standard_artifacts.PushedModel:
    artifact = standard_artifacts.PushedModel()
    artifact.set_int_custom_property("pushed", int(pushed))
    artifact.set_int_custom_property(MODEL_ID, number)
    return artifact


def resolve(**inputs: list[object]) -> list[int]:
    resolved = PushedModelStrategy().resolve_artifacts(None, inputs)
    assert resolved is not None
    assert set(resolved) == set(inputs)
    chosen = [artifact.id for artifact in resolved["model"]]
    # All that is resolved is written to ML Metadata at every run, for good.
    assert {push.get_int_custom_property(MODEL_ID) for push in resolved["pushed_model"]} == set(
        chosen
    )
    return chosen


def test_the_latest_pushed_model_is_where_a_warm_start_begins() -> None:
    pushes = [push_of(4), push_of(2)]
    assert resolve(model=[model(4), model(2), model(6)], pushed_model=pushes) == [4]


@pytest.mark.parametrize(
    ("pushes", "rolled_back"),
    [([], False), ([push_of(4, pushed=False)], False), ([push_of(4)], True)],
    ids=["never pushed", "refused", "rolled back"],
)
def test_a_model_that_does_not_count_leaves_the_one_before_it(
    pushes: list[object], rolled_back: bool
) -> None:
    models = [model(2), model(4, rolled_back=rolled_back)]
    assert resolve(model=models, pushed_model=[push_of(2), *pushes]) == [2]


def test_without_a_pushed_model_there_is_none() -> None:
    assert resolve(model=[model(2)], pushed_model=[]) == []


@given(
    pushed=st.sets(st.integers(1, 12)),
    bad=st.sets(st.integers(1, 12)),
    candidate=st.integers(1, 12),
)
def test_a_baseline_is_older_than_the_candidate_whether_that_has_been_pushed_or_not(
    pushed: set[int], bad: set[int], candidate: int
) -> None:
    def baseline(pushed: set[int]) -> list[int]:
        return resolve(
            model=[model(number, rolled_back=number in bad) for number in range(1, 13)],
            pushed_model=[push_of(number) for number in pushed],
            candidate=[model(candidate)],
        )

    assert baseline(pushed) == sorted(n for n in pushed - bad if n < candidate)[-1:]
    # So that the Evaluator of an unchanged second run is served from the cache.
    assert baseline(pushed | {candidate}) == baseline(pushed - {candidate})
