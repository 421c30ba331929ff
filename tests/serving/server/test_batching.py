"""Requests merged into batches, with a model that is a few lines of numpy."""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import Code, ServingError
from serving.server.batching import BatchingOptions, BatchQueue, BatchScheduler

Arrays = Mapping[str, np.ndarray]
BAD = -1.0


class Doubler:
    """Gives `y = 2 x` row by row; refuses batches with a -1 in them; notes what it was given.

    `pause` makes it wait in its next run until `proceed`.
    """

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.seen: list[tuple[int, int]] = []
        self._go = threading.Event()
        self._go.set()
        self._entered = threading.Event()

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        x = inputs["x"]
        self._entered.set()
        self._go.wait()
        self.batches.append([float(row.flat[0]) for row in x.reshape(len(x), *x.shape[1:], 1)])
        if (x == BAD).any():
            raise ServingError(Code.INVALID_ARGUMENT, "a row is bad")
        return {"y": 2 * x}

    def observe(self, rows: int, padding: int, seconds: float) -> None:
        self.seen.append((rows, padding))

    def pause(self) -> None:
        self._go.clear()
        self._entered.clear()

    def wait_until_running(self) -> None:
        assert self._entered.wait(30)

    def proceed(self) -> None:
        self._go.set()


def rows(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, dtype=np.float32)}


def answer(future: Future[dict[str, Any]]) -> list[float]:
    values: list[float] = future.result(30)["y"].tolist()
    return values


def code_of(future: Future[dict[str, Any]]) -> Code:
    error = future.exception(30)
    assert isinstance(error, ServingError)
    return error.code


@contextmanager
def one_thread() -> Iterator[BatchScheduler]:
    scheduler = BatchScheduler(1)
    try:
        yield scheduler
    finally:
        scheduler.close()


@pytest.fixture
def model() -> Iterator[Doubler]:
    model = Doubler()
    yield model
    model.proceed()


@pytest.fixture
def scheduler() -> Iterator[BatchScheduler]:
    with one_thread() as scheduler:
        yield scheduler


def behind_a_running_batch(scheduler: BatchScheduler, model: Doubler, **options: Any) -> Any:
    """A queue whose only thread is busy with the row 0 until `model.proceed()`."""
    queue = BatchQueue(scheduler, model, options=BatchingOptions(**options), observer=model.observe)
    model.pause()
    queue.submit(rows(0))
    model.wait_until_running()
    return queue


def test_a_refused_request_of_no_rows_is_told_that_it_has_none(scheduler: BatchScheduler) -> None:
    def refuse(inputs: Arrays) -> dict[str, np.ndarray]:
        raise ServingError(Code.INVALID_ARGUMENT, f"no {len(inputs['x'])} here")

    queue = BatchQueue(scheduler, refuse, options=BatchingOptions())
    assert str(queue.submit(rows(1)).exception(30)).endswith("ARGUMENT: no 1 here")
    error = queue.submit(rows()).exception(30)
    assert isinstance(error, ServingError)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == "A request of 0 rows is refused by the model: no 0 here"


def test_what_is_refused_is_explained_to_whom_it_concerns(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    asked = []

    def explain(inputs: Arrays, first: int, message: str) -> str:
        asked.append((inputs["x"].tolist(), first))
        return f"{message}, from {first} on"

    options = BatchingOptions(max_batch_size=4)
    queue = BatchQueue(scheduler, model, options=options, explain=explain)
    model.pause()
    queue.submit(rows(0))
    model.wait_until_running()
    good, bad = queue.submit(rows(1)), queue.submit(rows(2, BAD))
    large = queue.submit(rows(0, 0, 0, 0, 5, BAD))
    model.proceed()
    assert answer(good) == [2]
    assert str(bad.exception(30)) == "INVALID_ARGUMENT: a row is bad, from 0 on"
    assert str(large.exception(30)) == "INVALID_ARGUMENT: a row is bad, from 4 on"
    assert asked == [([2, BAD], 0), ([5, BAD], 4)]


def test_a_lonely_request_does_not_wait_for_others(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    queue = BatchQueue(scheduler, model, options=BatchingOptions())
    assert answer(queue.submit(rows(1, 2))) == [2, 4]
    assert model.batches == [[1, 2]]


def test_beside_a_running_batch_only_full_ones_begin(model: Doubler) -> None:
    scheduler = BatchScheduler(2)
    try:
        queue = behind_a_running_batch(scheduler, model, max_batch_size=2)
        futures = [queue.submit(rows(value)) for value in (1, 2, 3)]
        while queue.rows != 1:  # until the second thread has taken the two that fill a batch
            time.sleep(0.001)
        model.proceed()
        assert [answer(future) for future in futures] == [[2], [4], [6]]
    finally:
        model.proceed()
        scheduler.close()
    assert sorted(model.batches) == [[0], [1, 2], [3]]


def test_a_small_batch_waits_for_the_one_that_runs(model: Doubler) -> None:
    scheduler = BatchScheduler(2)
    try:
        queue = behind_a_running_batch(scheduler, model)
        other = BatchQueue(scheduler, lambda inputs: {"y": inputs["x"]}, options=BatchingOptions())
        first = queue.submit(rows(1))
        # The second thread is free, and serves other queues.
        assert answer(other.submit(rows(5))) == [5]
        second = queue.submit(rows(2))
        model.proceed()
        assert [answer(first), answer(second)] == [[2], [4]]
    finally:
        model.proceed()
        scheduler.close()
    assert model.batches == [[0], [1, 2]]


def test_what_comes_while_the_threads_are_busy_is_merged_in_order(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    queue = behind_a_running_batch(scheduler, model)
    futures = [queue.submit(rows(*values)) for values in ([1], [2, 3], [4])]
    model.proceed()
    assert [answer(future) for future in futures] == [[2], [4, 6], [8]]
    assert model.batches == [[0], [1, 2, 3, 4]]


def test_a_batch_has_at_most_max_batch_size_rows(scheduler: BatchScheduler, model: Doubler) -> None:
    queue = behind_a_running_batch(scheduler, model, max_batch_size=3)
    futures = [queue.submit(rows(*values)) for values in ([1, 2], [3, 4], [5])]
    model.proceed()
    assert [answer(future) for future in futures] == [[2, 4], [6, 8], [10]]
    assert model.batches == [[0], [1, 2], [3, 4, 5]]


def test_a_request_larger_than_a_batch_is_run_in_parts(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    queue = BatchQueue(scheduler, model, options=BatchingOptions(max_batch_size=4))
    assert answer(queue.submit(rows(*range(10)))) == [2.0 * value for value in range(10)]
    assert sorted(map(len, model.batches)) == [2, 4, 4]


def test_a_bad_row_fails_only_the_request_it_came_with(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    queue = behind_a_running_batch(scheduler, model)
    futures = [queue.submit(rows(*values)) for values in ([1], [2], [3, BAD], [4], [5])]
    model.proceed()
    assert [answer(future) for at, future in enumerate(futures) if at != 2] == [[2], [4], [8], [10]]
    assert code_of(futures[2]) is Code.INVALID_ARGUMENT


def test_a_bad_row_in_one_part_fails_a_large_request_once(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    queue = BatchQueue(scheduler, model, options=BatchingOptions(max_batch_size=2))
    assert code_of(queue.submit(rows(1, 2, BAD, 4, 5, 6))) is Code.INVALID_ARGUMENT


@given(
    requests=st.lists(
        st.lists(st.sampled_from([1.0, 2.0, 3.0, BAD]), min_size=0, max_size=5),
        min_size=1,
        max_size=12,
    ),
    size=st.integers(1, 6),
)
def test_every_request_is_answered_as_if_it_were_alone(
    requests: list[list[float]], size: int
) -> None:
    model = Doubler()
    with one_thread() as scheduler:
        queue = behind_a_running_batch(scheduler, model, max_batch_size=size)
        futures = [queue.submit(rows(*values)) for values in requests]
        model.proceed()
        for values, future in zip(requests, futures, strict=True):
            if BAD in values:
                assert code_of(future) is Code.INVALID_ARGUMENT
            else:
                assert answer(future) == [2 * value for value in values]
    assert all(len(batch) <= size for batch in model.batches)


def test_rows_of_different_shapes_are_not_merged(scheduler: BatchScheduler, model: Doubler) -> None:
    queue = behind_a_running_batch(scheduler, model)
    flat = queue.submit({"x": np.ones((2, 3), np.float32)})
    wide = queue.submit({"x": np.ones((2, 4), np.float32)})
    model.proceed()
    assert flat.result(30)["y"].shape == (2, 3)
    assert wide.result(30)["y"].shape == (2, 4)
    assert len(model.batches) == 3


def test_allowed_batch_sizes_are_reached_by_padding_that_nobody_sees(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    queue = behind_a_running_batch(
        scheduler, model, max_batch_size=8, allowed_batch_sizes=(1, 4, 8)
    )
    futures = [queue.submit(rows(*values)) for values in ([1, 2], [3, 4, 5])]
    model.proceed()
    assert [answer(future) for future in futures] == [[2, 4], [6, 8, 10]]
    assert [len(batch) for batch in model.batches] == [1, 8]
    assert model.seen == [(1, 0), (5, 3)]


def test_a_batch_that_is_not_full_waits_for_its_timeout(model: Doubler) -> None:
    scheduler = BatchScheduler(4)
    try:
        queue = BatchQueue(
            scheduler,
            model,
            options=BatchingOptions(max_batch_size=3, batch_timeout_micros=600_000_000),
        )
        first, second = queue.submit(rows(1)), queue.submit(rows(2))
        with pytest.raises(FutureTimeout):
            first.result(0.2)
        third = queue.submit(rows(3))
        assert [answer(future) for future in (first, second, third)] == [[2], [4], [6]]
        assert model.batches == [[1, 2, 3]]
    finally:
        scheduler.close()


def test_a_batch_begins_when_its_timeout_is_over(scheduler: BatchScheduler, model: Doubler) -> None:
    queue = BatchQueue(scheduler, model, options=BatchingOptions(batch_timeout_micros=1000))
    assert answer(queue.submit(rows(1))) == [2]


def test_a_full_queue_refuses_and_recovers(scheduler: BatchScheduler, model: Doubler) -> None:
    queue = behind_a_running_batch(scheduler, model, max_batch_size=2, max_enqueued_batches=2)
    waiting = [queue.submit(rows(value)) for value in range(4)]
    with pytest.raises(ServingError, match="queue to which this task was submitted is full") as e:
        queue.submit(rows(9))
    assert e.value.code is Code.RESOURCE_EXHAUSTED
    model.proceed()
    assert [answer(future) for future in waiting] == [[0], [2], [4], [6]]
    assert answer(queue.submit(rows(9))) == [18]


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    queue = BatchQueue(
        scheduler, model, options=BatchingOptions(max_batch_size=2, max_enqueued_batches=2)
    )
    assert len(answer(queue.submit(rows(*range(20))))) == 20


def test_a_deadline_that_passes_in_the_queue_is_not_run(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    queue = behind_a_running_batch(scheduler, model)
    late = queue.submit(rows(1), deadline=time.monotonic())
    early = queue.submit(rows(2), deadline=time.monotonic() + 600)
    model.proceed()
    assert code_of(late) is Code.DEADLINE_EXCEEDED
    assert answer(early) == [4]
    assert model.batches == [[0], [2]]


def test_a_cancelled_request_is_not_run(scheduler: BatchScheduler, model: Doubler) -> None:
    queue = behind_a_running_batch(scheduler, model)
    gone, stays = queue.submit(rows(1)), queue.submit(rows(2))
    assert gone.cancel()
    model.proceed()
    assert answer(stays) == [4]
    assert model.batches == [[0], [2]]


def test_without_batching_each_request_runs_alone(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    queue = behind_a_running_batch(scheduler, model, enabled=False, max_batch_size=2)
    futures = [queue.submit(rows(*values)) for values in ([1], [2, 3, 4], [5])]
    model.proceed()
    assert [answer(future) for future in futures] == [[2], [4, 6, 8], [10]]
    assert model.batches == [[0], [1], [2, 3, 4], [5]]


def test_inputs_that_disagree_about_the_batch_are_refused(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    queue = BatchQueue(scheduler, model, options=BatchingOptions())
    with pytest.raises(ServingError, match="equal 0th-dimension size") as unequal:
        queue.submit({"x": np.zeros(2), "z": np.zeros(3)})
    with pytest.raises(ServingError, match="at least one dimension") as scalar:
        queue.submit({"x": np.array(1.0)})
    assert unequal.value.code is scalar.value.code is Code.INVALID_ARGUMENT


def test_outputs_without_the_batch_dimension_are_an_error(scheduler: BatchScheduler) -> None:
    queue = BatchQueue(scheduler, lambda inputs: {"y": np.zeros(7)}, options=BatchingOptions())
    assert code_of(queue.submit(rows(1, 2))) is Code.FAILED_PRECONDITION


def test_an_unforeseen_error_reaches_the_caller_and_the_thread_lives_on(
    scheduler: BatchScheduler,
) -> None:
    def fail(inputs: Arrays) -> dict[str, np.ndarray]:
        raise ZeroDivisionError("secret")

    queue = BatchQueue(scheduler, fail, options=BatchingOptions())
    for _ in range(2):
        future = queue.submit(rows(1))
        assert code_of(future) is Code.INTERNAL
        assert "secret" not in str(future.exception(30))


def test_busy_and_idle_queues_take_turns(scheduler: BatchScheduler, model: Doubler) -> None:
    busy = behind_a_running_batch(scheduler, model, max_batch_size=1)
    idle = BatchQueue(scheduler, model, options=BatchingOptions(max_batch_size=1))
    last = [busy.submit(rows(value)) for value in (1, 2, 3)][-1]
    other = idle.submit(rows(9))
    model.proceed()
    answer(last)
    answer(other)
    assert model.batches.index([9]) < model.batches.index([3])


def test_what_waits_in_a_removed_queue_is_unavailable(
    scheduler: BatchScheduler, model: Doubler
) -> None:
    queue = behind_a_running_batch(scheduler, model)
    waiting = queue.submit(rows(1))
    scheduler.remove(queue)
    assert code_of(waiting) is Code.UNAVAILABLE
    model.proceed()


@pytest.mark.parametrize(("cores", "threads"), [({3}, 2), ({0, 1, 2}, 3)])
def test_there_is_a_thread_for_each_core_that_the_process_may_use(
    cores: set[int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    assert BatchingOptions().num_batch_threads == threads


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"num_batch_threads": 0}, "num_batch_threads"),
        ({"max_enqueued_batches": 0}, "max_enqueued_batches"),
        ({"batch_timeout_micros": -1}, "batch_timeout_micros"),
        ({"max_batch_size": 8, "allowed_batch_sizes": (1, 4)}, "ending with max_batch_size"),
        ({"max_batch_size": 8, "allowed_batch_sizes": (4, 1, 8)}, "ascending"),
        ({"max_batch_size": 8, "allowed_batch_sizes": (0, 8)}, "allowed_batch_sizes"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchingOptions(**wrong)
