"""What is said of few classes, and of trainings that learnt theirs by heart."""

import pytest

from components.trainer.outlook import expected, remarks, validated
from data_ingest.sources.kinds import KINDS


def history(*accuracies: float, loss: float) -> list[dict[str, float]]:
    return [
        {"step": 100.0 * at, "loss": loss, "accuracy": accuracy}
        for at, accuracy in enumerate(accuracies, start=1)
    ]


def said(accuracies: tuple[float, ...], *, loss: float, classes: int = 40) -> list[str]:
    return [*remarks(history(*accuracies, loss=loss), way=20, classes=classes)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_classes_is_said_with_what_such_numbers_came_to(kind) -> None:  # type: ignore[no-untyped-def]
    for classes in (2, 25, 5_000):
        line = expected(classes, kind)
        assert line.startswith(f"{classes:,} classes to train: ")
        assert "%" in line
        assert ("pretrained" in line) == (classes < 10)


def test_the_nearest_measurements_on_either_side_are_told() -> None:
    assert "28 people" in expected(30, "photo")
    assert "367 people" in expected(30, "photo")
    assert "28 people" not in expected(500, "photo")


def test_an_accuracy_of_three_classes_is_not_shown() -> None:
    assert validated(3, 3, 1.0) == "3-way of 3 classes: too few to tell"
    assert validated(20, 30, 0.931) == "20-way 93.1 %"
    (remark,) = said((0.9, 1.0), loss=0.5, classes=3)
    assert remark.startswith("Validation: 3 classes are held out, too few to tell")


@pytest.mark.parametrize(
    ("accuracies", "loss", "told"),
    [
        ((0.8, 0.7), 0.01, "fell from 80.0 % at step 100 to 70.0 %"),
        ((0.3, 0.3), 0.01, "stay at 30.0 % of 20-way trials"),
        ((0.8, 0.79), 0.01, ""),
        ((0.8, 0.7), 0.4, ""),
    ],
)
def test_overfitting_is_named(accuracies: tuple[float, ...], loss: float, told: str) -> None:
    remarks_made = said(accuracies, loss=loss)
    assert len(remarks_made) == bool(told)
    for remark in remarks_made:
        assert remark.startswith("Overfitting: the loss is down to 0.010")
        assert told in remark


def test_three_classes_cannot_tell_what_learning_by_heart_costs() -> None:
    assert [one.partition(":")[0] for one in said((1.0,), loss=0.01, classes=3)] == [
        "Validation",
        "Overfitting",
    ]
    assert [*remarks([], way=0, classes=0)] == []
