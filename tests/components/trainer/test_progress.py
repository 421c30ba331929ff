"""Progress lines."""

import logging
import re

import pytest
import tensorflow as tf

from components.trainer import progress as progress_module
from components.trainer.progress import Progress
from data_ingest.progress import Step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_step_loss_accuracy_speed_and_time_left(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shown = Step("Training", 200)
    progress = Progress(shown, first=0, last=200, images_per_step=96)
    points = 0
    for done in range(1, 100):
        clock[0] += 1
        points += progress.step(done, tf.constant(0.5))
    assert shown.share == 99 / 200
    assert shown.note == "loss 0.500  images/s 96"
    progress.validated(100, 0.931, way=20, classes=30)
    assert caplog.messages[-1] == (
        "step 100/200  loss 0.500  val 20-way 93.1 %  images/s 96  left 1m38s"
    )
    assert shown.note == "loss 0.500  val 20-way 93.1 %  images/s 96"
    assert all(re.match(r"step \d+/200  loss 0\.500", line) for line in caplog.messages)
    assert points == 98 // 5
    # The first at once, so that it is seen that something goes on; then one every 10 seconds.
    assert len(caplog.messages) == 1 + (98 - 6) // 10 + 1


def test_compilation_and_validation_do_not_count_as_training(clock: list[float]) -> None:
    progress = Progress(Step("Training", 100), first=0, last=100, images_per_step=10)
    clock[0] += 60
    progress.step(1, tf.constant(1.0))
    for done in range(2, 12):
        clock[0] += 2
        progress.step(done, tf.constant(1.0))
    progress.settle()
    clock[0] += 100
    progress.validated(11, 0.5, way=5, classes=30)
    for done in range(12, 22):
        clock[0] += 2
        progress.step(done, tf.constant(1.0))
    progress.settle()
    assert progress.average_images_per_second == pytest.approx(5)


def test_the_loss_is_the_mean_since_the_last_line(clock: list[float]) -> None:
    progress = Progress(Step("Training", 10), first=0, last=10, images_per_step=1)
    for done, loss in enumerate([9.0, 1.0, 2.0], start=1):
        progress.step(done, tf.constant(loss))
    assert progress.settle() == pytest.approx(4)
    progress.validated(3, 0.5, way=5, classes=30)
    progress.step(4, tf.constant(7.0))
    assert progress.settle() == pytest.approx(7)


def test_an_accuracy_of_few_classes_is_not_shown(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(Step("Training", 200), first=0, last=200, images_per_step=96)
    progress.step(1, tf.constant(0.5))
    progress.validated(2, 1.0, way=3, classes=3)
    assert "val" not in caplog.messages[-1]
