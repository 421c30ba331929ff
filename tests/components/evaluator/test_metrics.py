"""The TFMA metrics, away from any pipeline."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluator.metrics import OneShotAccuracy, VerificationMetric
from components.evaluator.settings import VERIFICATION_METRICS
from components.evaluator.statistics import trial_credit


def extracts(labels: Any, logits: Any, way: int, trial: bytes = b"one") -> dict[str, Any]:
    """What TFMA hands to a metric: pairs of one trial, or some outside trials."""
    return {
        "features": {"way": np.array([way]), "trial": np.array([trial])},
        "labels": np.array(labels),
        "predictions": {"logit": np.array(logits, np.float32), "score": np.zeros(len(labels))},
    }


def computed(metric: Any, queries: list[dict[str, Any]], *, workers: int = 1) -> dict[str, float]:
    """Runs a metric's computations over extracts dealt out to some workers."""
    results: dict[Any, Any] = {}
    for computation in metric.computations(model_names=[""]):
        if hasattr(computation, "combiner"):
            combiner = computation.combiner
            parts = []
            for worker in range(workers):
                accumulator = combiner.create_accumulator()
                for query in queries[worker::workers]:
                    (preprocessor,) = computation.preprocessors
                    for pairs in preprocessor.process(query):
                        accumulator = combiner.add_input(accumulator, pairs)
                parts.append(accumulator)
            results |= combiner.extract_output(combiner.merge_accumulators(parts))
        else:
            results |= computation.result(results)
    return {key.name: value for key, value in results.items()}


def trial(*, way: int, answer: int, logits: Any) -> dict[str, Any]:
    return extracts(np.arange(way) == answer, logits, way)


@given(way=st.integers(2, 40), answer=st.integers(0, 1000))
def test_a_constant_model_scores_one_in_way(way: int, answer: int) -> None:
    found = computed(
        OneShotAccuracy(), [trial(way=way, answer=answer % way, logits=np.full(way, 3.5))]
    )
    assert found["one_shot_accuracy"] == pytest.approx(1 / way)


@given(answers=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_accuracy_is_the_share_of_trials_whose_highest_logit_is_the_answer(
    answers: list[tuple[int, int]],
) -> None:
    trials = [
        trial(way=5, answer=answer, logits=np.arange(5) == picked) for answer, picked in answers
    ]
    for workers in (1, 3):
        found = computed(OneShotAccuracy(), trials, workers=workers)
        assert found["one_shot_accuracy"] == pytest.approx(
            np.mean([answer == picked for answer, picked in answers])
        )
        assert found["one_shot_accuracy/n"] == len(answers)
        assert found["one_shot_accuracy/malformed"] == 0


def test_logits_decide_where_scores_have_saturated() -> None:
    logits = np.array([40.0, 41.0], np.float32)
    assert np.float32(1) / (1 + np.exp(-logits[0])) == np.float32(1) / (1 + np.exp(-logits[1]))
    assert trial_credit(np.array([0, 1]), logits, 2) == 1


@pytest.mark.parametrize(
    ("labels", "way"),
    [([0, 0, 0], 3), ([1, 1, 0], 3), ([1, 0], 3), ([1, 0, 0, 0], 3)],
    ids=["no answer", "two answers", "a candidate missing", "a candidate too many"],
)
def test_a_malformed_trial_is_lost_and_counted(labels: list[int], way: int) -> None:
    good = trial(way=3, answer=0, logits=[1, 0, 0])
    bad = extracts(labels, np.array(labels, np.float32), way)
    found = computed(OneShotAccuracy(), [good, bad])
    assert found["one_shot_accuracy"] == 0.5
    assert found["one_shot_accuracy/n"] == 2
    assert found["one_shot_accuracy/malformed"] == 1


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_trial_that_comes_in_parts_is_one_trial(workers: int) -> None:
    parts = [
        extracts([0], [0.0], 4, b"won"),
        extracts([1, 0, 0], [1.0, 0, 0], 4, b"lost"),
        extracts([0, 0, 1], [0.0, 0.0, 1.0], 4, b"won"),
        extracts([0], [2.0], 4, b"lost"),
        trial(way=4, answer=2, logits=[0, 0, 1, 0]),
    ]
    found = computed(OneShotAccuracy(), parts, workers=workers)
    assert found["one_shot_accuracy"] == pytest.approx(2 / 3)
    assert found["one_shot_accuracy/n"] == 3
    assert found["one_shot_accuracy/malformed"] == 0


@pytest.mark.parametrize("logits", [[math.nan, 0, 0], [0, math.nan, math.nan], [math.nan] * 3])
def test_a_nan_logit_loses_the_trial(logits: list[float]) -> None:
    assert computed(OneShotAccuracy(), [trial(way=3, answer=0, logits=logits)])[
        "one_shot_accuracy"
    ] == (0)


def test_pairs_outside_trials_do_not_touch_one_shot_accuracy() -> None:
    verification = extracts([1, 0, 1], [1.0, 2.0, 3.0], 0)
    found = computed(OneShotAccuracy(), [verification])
    assert found["one_shot_accuracy/n"] == 0
    assert math.isnan(found["one_shot_accuracy"])


def test_pairs_of_trials_do_not_touch_verification_figures() -> None:
    pairs = [extracts([1], [2.0], 0), extracts([0], [-2.0], 0), extracts([0], [9.0], 20)]
    found = computed(VerificationMetric("auc"), pairs, workers=2)
    assert found["auc"] == 1
    assert found["auc/n"] == 2


@pytest.mark.parametrize("name", VERIFICATION_METRICS)
def test_every_verification_figure_comes_with_n_and_interval_even_without_data(name: str) -> None:
    found = computed(VerificationMetric(name), [])
    assert found[f"{name}/n"] == 0
    for key in (name, f"{name}/ci_low", f"{name}/ci_high"):
        assert math.isnan(found[key])


def test_an_unknown_verification_figure_is_an_error() -> None:
    with pytest.raises(ValueError, match="f1"):
        VerificationMetric("f1")
