"""Names of the code in plain words, and figures in percent."""

import pytest

from pipeline.reports.words import both, figure_title, plain, points, sentence


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Old_Church_Slavonic_(Cyrillic)", "Old Church Slavonic (Cyrillic)"),
        ("run08/class03", "run 8, class 3"),
        ("Greek/character10", "Greek, character 10"),
        ("part007", "part007"),
    ],
)
def test_groups_and_classes_are_plain(name: str, told: str) -> None:
    assert plain(name) == told


def test_a_group_that_two_classes_share_is_named_once() -> None:
    assert both(("Greek/character01", "Greek/character02")) == "Greek, character 1 and character 2"
    assert both(("a/character01", "ab/character01")) == "a, character 1 and ab, character 1"
    assert both(("ada", "bob")) == "ada and bob"


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (
            "within_20way_accuracy 0.5000 is below 0.609",
            "20 candidates of one alphabet 50 % is below 60.9 %",
        ),
        (
            "auc is 0.0312 worse than the latest blessed model's; 0.02 is allowed",
            "AUC, area under the ROC curve is 3.1 points worse than the latest blessed model's; "
            "2 points is allowed",
        ),
        ("the export gives other scores: 0.5 apart", "the export gives other scores: 0.5 apart"),
    ],
)
def test_reasons_name_figures_in_words_and_percent(reason: str, told: str) -> None:
    assert sentence(reason, "omniglot") == told


def test_figures_say_which_trials_and_which_forgeries_they_are_of() -> None:
    assert figure_title("official_20way_accuracy") == "Omniglot's official trials, 20 candidates"
    assert figure_title("between_5way_accuracy") == "5 candidates of all groups"
    assert figure_title("eer_skilled") == "EER, equal error rate, skilled forgeries"


def test_differences_have_a_sign() -> None:
    assert [points(one) for one in (0.013, -0.0204, 0.0001)] == ["+1.3", "−2.0", "±0.0"]
