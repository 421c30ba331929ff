"""How far steps are, and what a log is told of it."""

import logging
import threading

import pytest

from data_ingest import progress
from data_ingest.progress import advance, clock, counted, running, step, watched


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_a_step_tells_how_much_is_done_and_what_is_left(now: list[float]) -> None:
    with step("Reading", 200) as reading:
        now[0] += 5
        assert str(reading) == "Reading: 0m05s so far"
        now[0] += 5
        reading.advance(50)
        assert str(reading) == "Reading: 25%, left 0m30s"
        reading.at(100)
        assert str(reading) == "Reading: 50%, left 0m10s"


def test_what_was_done_before_does_not_count_for_the_pace(now: list[float]) -> None:
    with step("Training", 200, done=100) as training:
        now[0] += 10
        assert str(training) == "Training: 50%"
        training.at(150)
        assert str(training) == "Training: 75%, left 0m10s"


def test_what_nobody_counts_is_measured_and_never_more_than_all() -> None:
    done = [0]
    with step("Loading", 10, measure=lambda: done[0]) as loading:
        assert loading.share is None
        done[0] = 5
        assert loading.share == 0.5
        done[0] = 12
        assert loading.share == 1.0


def test_without_a_total_only_the_time_is_known(now: list[float]) -> None:
    with step("Calibrating") as calibrating:
        calibrating.advance()
        now[0] += 3700
        assert str(calibrating) == "Calibrating: 1h01m so far"
        calibrating.at(5, 10)
        assert calibrating.share == 0.5


def test_items_are_counted_until_whoever_takes_them_goes() -> None:
    items = counted(iter("abcd"), "Counting", 4)
    assert running() == ()
    assert [next(items), next(items)] == ["a", "b"]
    assert [one.share for one in running()] == [0.25]
    del items
    assert running() == ()


def test_workers_in_this_process_count_for_its_innermost_step() -> None:
    advance("Nothing", 1)
    with step("Evaluator") as outer, step("Reading", 10) as inner:
        advance("Reading", 4)
        assert (outer.share, inner.share) == (None, 0.4)
        advance("Writing", 1, 20)
        assert (inner.name, inner.share) == ("Writing", 0.05)
        advance("Checking", 1)
        assert (inner.name, inner.total) == ("Checking", 20)


def test_steps_end_where_they_fail_and_watchers_are_told() -> None:
    seen = []
    with watched(lambda: seen.append([one.name for one in running()])):
        with pytest.raises(KeyError), step("Run"), step("Trainer"):
            raise KeyError
        assert running() == ()
    assert seen == [["Run"], ["Run", "Trainer"], ["Run"], []]
    with step("Later"):
        pass
    assert len(seen) == 4


def test_the_log_has_a_line_now_and_then_of_the_innermost_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.01)
    told = threading.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    heard = Heard()
    logging.getLogger(progress.__name__).addHandler(heard)
    try:
        with step("Evaluator"), step("Evaluating", 4) as inner, step("Quiet", logged=False):
            pass
        with step("Evaluator"), step("Evaluating", 4) as inner:
            inner.advance()
            assert told.wait(60)
    finally:
        logging.getLogger(progress.__name__).removeHandler(heard)
    said = {record.getMessage().partition(",")[0] for record in caplog.records}
    assert "Evaluating: 25%" in said
    assert all(record.instead_of_view for record in caplog.records)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0m00s"), (65.9, "1m05s"), (3599, "59m59s"), (7260, "2h01m")]
)
def test_times_are_short(seconds: float, said: str) -> None:
    assert clock(seconds) == said
