"""When a client asks again, and when it gives up: without any server, on a clock of its own."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.client import types as client_types
from serving.client.calls import Calls
from serving.client.types import (
    ClientError,
    Deadline,
    DeadlineExceeded,
    InvalidRequest,
    Limits,
    NotFound,
    Overloaded,
    Pause,
    Predict,
    Retries,
    Send,
    ServerError,
    Steps,
    Target,
    Unauthorized,
    Unavailable,
    VersionStatus,
)
from serving.errors import Code


class Clock:
    """Seconds that pass only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(client_types, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def calls(target: Target | None = None, **options: Any) -> Calls:
    return Calls(target or Target("siamese"), Limits(), Retries(**options))


def embedded(rows: int) -> dict[str, np.ndarray]:
    return {"embedding": np.zeros((rows, 2), np.float32)}


def carry_out(steps: Steps[Any], clock: Clock, *, answers: list[Any], each: float = 0.0) -> Any:
    """Carries the steps out, each request taking `each` seconds; returns result and steps."""
    done: list[Send | Pause] = []
    try:
        step = next(steps)
        while True:
            done.append(step)
            if isinstance(step, Pause):
                clock.now += step.seconds
                step = steps.send(None)
                continue
            clock.now += min(each, step.timeout)
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            step = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
    except StopIteration as end:
        return end.value, done
    except ClientError as error:
        return error, done


@pytest.mark.parametrize("failure", [Unavailable("gone"), Overloaded("queue full")])
def test_what_may_pass_is_asked_again(failure: ClientError, clock: Clock) -> None:
    steps = calls().embed([b"a"], Deadline(10))
    result, done = carry_out(steps, clock, answers=[failure, failure, embedded(1)])
    assert result.shape == (1, 2)
    assert [type(step) for step in done] == [Send, Pause, Send, Pause, Send]


@pytest.mark.parametrize(
    "failure",
    [
        InvalidRequest("bad"),
        NotFound("no"),
        Unauthorized("who?"),
        ServerError("oh"),
        DeadlineExceeded("late"),
        ClientError("aborted", code=Code.ABORTED),
    ],
    ids=lambda error: error.code.name,
)
def test_everything_else_is_asked_once(failure: ClientError, clock: Clock) -> None:
    steps = calls().embed([b"a"], Deadline(10))
    result, done = carry_out(steps, clock, answers=[failure])
    assert result is failure
    assert len(done) == 1


def test_tries_are_counted(clock: Clock) -> None:
    failure = Unavailable("gone")
    steps = calls(attempts=3).embed([b"a"], Deadline(1000))
    result, done = carry_out(steps, clock, answers=[failure])
    assert result is failure
    assert sum(isinstance(step, Send) for step in done) == 3


@given(
    seconds=st.floats(0.01, 100),
    each=st.floats(0, 10),
    first_pause=st.floats(0, 5),
    images=st.integers(1, 5),
    failing=st.lists(st.booleans(), max_size=30),
)
def test_no_step_goes_past_the_one_deadline(
    seconds: float, each: float, first_pause: float, images: int, failing: list[bool]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = Clock(monkeypatch)
        end = clock.now + seconds
        several = Calls(
            Target("siamese"), Limits(images=1), Retries(attempts=99, first_pause=first_pause)
        )
        steps = several.embed([b"a"] * images, Deadline(seconds))
        answers = [Unavailable("gone") if fails else embedded(1) for fails in failing]
        result, done = carry_out(steps, clock, answers=[*answers, embedded(1)], each=each)
        assert clock.now <= end + 1e-6
        assert all(step.timeout > 0 for step in done if isinstance(step, Send))
        assert isinstance(result, (Unavailable, DeadlineExceeded)) or len(result) == images


def test_pauses_grow_and_are_drawn_between_zero_and_their_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    monkeypatch.setattr(client_types, "random", SimpleNamespace(uniform=draw))
    retries = Retries(first_pause=0.1, longest_pause=0.5)
    pauses = [retries.pause(attempt, retry_after=None) for attempt in range(4)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.5])
    assert {low for low, _ in asked} == {0}


def test_a_server_that_says_when_is_not_asked_earlier(clock: Clock) -> None:
    steps = calls().embed([b"a"], Deadline(100))
    _, done = carry_out(steps, clock, answers=[Overloaded("full", retry_after=7.0), embedded(1)])
    assert done[1] == Pause(7.0)


def test_a_pause_that_does_not_fit_is_not_begun(clock: Clock) -> None:
    failure = Overloaded("full", retry_after=7.0)
    result, done = carry_out(calls().embed([b"a"], Deadline(5)), clock, answers=[failure])
    assert result is failure
    assert len(done) == 1


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    images=st.integers(1, 10),
    size=st.integers(1, 100),
)
def test_requests_keep_the_order_and_the_limits(sizes: list[int], images: int, size: int) -> None:
    given_images = [bytes([place]) * length for place, length in enumerate(sizes)]
    steps = Calls(Target("siamese"), Limits(images=images, bytes=size), Retries()).embed(
        given_images, Deadline(10)
    )
    sent = []
    step = next(steps)
    try:
        while True:
            assert isinstance(step, Send)
            assert isinstance(step.request, Predict)
            chunk = step.request.inputs["image"]
            sent.append(chunk)
            places = [[image[0], len(image)] for image in chunk]
            step = steps.send({"embedding": np.array(places, np.float32)})
    except StopIteration as end:
        np.testing.assert_array_equal(end.value, list(enumerate(sizes)))
    assert [image for chunk in sent for image in chunk] == given_images
    for chunk in sent:
        assert 1 <= len(chunk) <= images
        assert len(chunk) == 1 or sum(map(len, chunk)) <= size


def test_a_refused_chunk_says_which_rows_it_held() -> None:
    steps = Calls(Target("siamese"), Limits(images=2), Retries()).embed(
        [b"a", b"b", b"c"], Deadline(10)
    )
    next(steps)
    steps.send(embedded(2))
    with pytest.raises(InvalidRequest, match="in rows 2 to 2: image refused"):
        steps.throw(InvalidRequest("image refused"))


@pytest.mark.parametrize(
    "answer", [{}, {"embedding": np.zeros((2, 2), np.float32)}], ids=["no output", "other rows"]
)
def test_an_answer_that_does_not_fit_is_the_servers_fault(answer: dict[str, Any]) -> None:
    steps = calls().embed([b"a"], Deadline(10))
    next(steps)
    with pytest.raises(ServerError):
        steps.send(answer)


def test_nothing_is_nothing_to_send() -> None:
    for steps in (calls().embed([], Deadline(1)), calls().score([b"a"], [], Deadline(1))):
        with pytest.raises(InvalidRequest, match="no image"):
            next(steps)


def test_lists_of_different_lengths_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(InvalidRequest, match="2 images cannot be compared with 3"):
        next(calls().score([b"a"] * 2, [b"a"] * 3, Deadline(1)))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([[1.0, 2.0]], [[1.0]]),
        (np.zeros((2, 3)), np.zeros((3, 3))),
        (np.zeros((2, 2, 2)), np.zeros((2, 2))),
        ([], [1.0]),
        ([np.nan], [1.0]),
        (["x"], [1.0]),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(a: Any, b: Any) -> None:
    with pytest.raises(InvalidRequest):
        next(calls().match(a, b, Deadline(1)))


def test_a_pin_is_a_version_or_a_label_not_both() -> None:
    with pytest.raises(ValueError, match="not both"):
        Target("siamese", version=1, label="stable")


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timeout_is_more_than_nothing(seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Deadline(seconds)


def status(version: int, state: str, code: Code = Code.OK, message: str = "") -> VersionStatus:
    return VersionStatus(version, state, code, message)


def test_waiting_goes_on_while_there_is_no_server_no_model_and_no_loaded_version(
    clock: Clock,
) -> None:
    answers = [
        Unavailable("connection refused"),
        NotFound("no such model"),
        DeadlineExceeded("this poll took too long"),
        [status(7, "LOADING")],
        [status(6, "UNLOADING"), status(7, "AVAILABLE")],
        7,
    ]
    result, _ = carry_out(calls().wait_ready(Deadline(60)), clock, answers=answers)
    assert result == 7


def test_waiting_for_a_label_goes_on_until_the_server_knows_it(
    clock: Clock,
) -> None:
    loaded = [status(6, "AVAILABLE"), status(7, "AVAILABLE")]
    answers = [loaded, InvalidRequest("Unrecognized servable version label"), loaded, 6]
    waiting = calls(Target("siamese", label="stable")).wait_ready(Deadline(60))
    result, _ = carry_out(waiting, clock, answers=answers)
    assert result == 6


@pytest.mark.parametrize("failure", [Unauthorized("who?"), InvalidRequest("what?")])
def test_waiting_ends_where_it_cannot_help(failure: ClientError, clock: Clock) -> None:
    result, done = carry_out(calls().wait_ready(Deadline(60)), clock, answers=[failure])
    assert result is failure
    assert len(done) == 1


def test_waiting_in_vain_says_what_was_seen_last(clock: Clock) -> None:
    failed = [status(7, "END", Code.DATA_LOSS, "variables are missing")]
    result, _ = carry_out(calls().wait_ready(Deadline(3)), clock, answers=[failed])
    assert isinstance(result, DeadlineExceeded)
    assert "version 7 is END (DATA_LOSS: variables are missing)" in result.message
