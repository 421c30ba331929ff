"""What a model is judged by where the data has fewer trials than the thresholds name."""

import logging

import pytest

from components.evaluator.evidence import (
    FALLBACK_THRESHOLD,
    NOT_ENOUGH_EVIDENCE,
    evidence,
    min_for_way,
    tell_of_evidence,
)
from components.evaluator.settings import DEFAULT_THRESHOLDS, EvaluateSettings, Threshold

PAIRS = ("verification", 0)
OFFICIAL, WITHIN = "official_20way_accuracy", "within_20way_accuracy"
AUC = {"auc": DEFAULT_THRESHOLDS["auc"]}


def asked(
    *protocols: tuple[str, int], **thresholds: Threshold
) -> tuple[dict[str, Threshold], list[str]]:
    settings = EvaluateSettings(thresholds=DEFAULT_THRESHOLDS | thresholds)
    found = evidence(settings, {PAIRS, *protocols})
    return found.thresholds, list(found.lacking)


def test_omniglot_is_judged_by_the_thresholds_as_they_are() -> None:
    trials = {("official", 20), ("within", 20), ("within", 5), ("between", 20), ("between", 5)}
    assert asked(*trials) == (DEFAULT_THRESHOLDS, [])


@pytest.mark.parametrize(
    ("trials", "by", "least"),
    [
        ([("within", 20), ("within", 5)], WITHIN, 0.55),
        ([("within", 12), ("within", 5), ("between", 20)], "within_12way_accuracy", 0.609),
        ([("within", 2)], "within_2way_accuracy", 0.871),
        ([("between", 20), ("between", 5)], "between_20way_accuracy", 0.55),
        ([("between", 5)], "between_5way_accuracy", 0.725),
        ([("within", 40)], "within_40way_accuracy", 0.479),
    ],
)
def test_a_default_goes_to_the_trials_that_the_data_has(
    trials: list[tuple[str, int]], by: str, least: float
) -> None:
    assert asked(*trials) == ({by: Threshold(min=least, max_drop=0.03), **AUC}, [])


def test_without_any_trials_nothing_is_blessed() -> None:
    assert asked() == ({WITHIN: DEFAULT_THRESHOLDS[WITHIN], **AUC}, [WITHIN])
    alone = EvaluateSettings(thresholds={OFFICIAL: DEFAULT_THRESHOLDS[OFFICIAL]})
    assert evidence(alone, {PAIRS, ("within", 20)}).lacking == (OFFICIAL,)


@pytest.mark.parametrize("name", [OFFICIAL, WITHIN, "between_5way_accuracy"])
def test_a_threshold_of_ones_own_is_never_moved(name: str) -> None:
    mine = Threshold(min=0.5)
    thresholds, lacking = asked(("within", 5), **{name: mine})
    assert lacking == [name]
    assert thresholds[name] == mine
    assert asked(("within", 5), within_5way_accuracy=mine)[0]["within_5way_accuracy"] == mine


def test_a_threshold_on_forgeries_takes_pairs_with_such() -> None:
    mine = {"eer_skilled": Threshold(max=0.1)}
    assert asked(("within", 20), **mine)[1] == ["eer_skilled"]
    assert asked(("between", 20), ("skilled", 0), ("random", 0), **mine)[1] == []
    found = evidence(EvaluateSettings(thresholds=mine), {("skilled", 0)})
    assert found == (mine, (), ())


def test_who_asks_for_no_trials_is_judged_by_pairs() -> None:
    for thresholds in ({}, {"eer": Threshold(max=0.2)}):
        found = evidence(EvaluateSettings(thresholds=thresholds), {PAIRS})
        assert found == ({**thresholds, "auc": FALLBACK_THRESHOLD}, (), ())


def test_official_trials_are_evidence_enough() -> None:
    assert asked(("official", 20)) == ({OFFICIAL: DEFAULT_THRESHOLDS[OFFICIAL], **AUC}, [])


def test_as_much_is_asked_of_fewer_candidates() -> None:
    assert min_for_way(0.55, 20, 20) == 0.55
    minima = [min_for_way(0.55, 20, way) for way in range(2, 21)]
    assert minima == sorted(minima, reverse=True)
    # Always well above chance.
    assert all(least > 1.7 / way for way, least in enumerate(minima, start=2))


def test_what_is_lacking_is_told_in_large_letters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for protocols in ({PAIRS}, {PAIRS, ("within", 7)}):
        tell_of_evidence(evidence(EvaluateSettings(), protocols), protocols)
    warning, note = caplog.records
    assert warning.levelname == "WARNING"
    assert NOT_ENOUGH_EVIDENCE in warning.getMessage()
    assert "no trials at all" in " ".join(warning.getMessage().split())
    assert "within_7way_accuracy takes its place" in note.getMessage()
