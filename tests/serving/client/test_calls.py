"""When a client asks again, and when it gives up: without any server, on a clock of its own."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.client import types as client_types
from serving.client.base import DEFAULT_LIMITS, DEFAULT_RETRIES, Wire
from serving.client.calls import AwaitingClient
from serving.client.types import (
    ClientError,
    Deadline,
    DeadlineExceeded,
    InvalidRequest,
    Limits,
    NotFound,
    Overloaded,
    Predict,
    Request,
    Retries,
    ServerError,
    Target,
    Unauthorized,
    Unavailable,
    VersionStatus,
)
from serving.errors import Code

pytestmark = pytest.mark.usefixtures("raw_bytes")
MODEL = Target("siamese")


class Send(NamedTuple):
    """What a wire was given to send."""

    request: Request
    timeout: float


class Pause(NamedTuple):
    """For how long a wire was to sleep."""

    seconds: float


class FakeWire(Wire):
    """Answers with `answers`, the last one again and again, each `seconds` after it was asked.

    Its clock is the only one: seconds pass only while it sends and sleeps.
    """

    def __init__(self, answers: Sequence[Any], *, seconds: float = 0.0) -> None:
        self.now = 1000.0
        self.done: list[Send | Pause] = []
        self._answers = list(answers)
        self._seconds = seconds

    async def send(self, request: Request, timeout: float) -> Any:
        self.done.append(Send(request, timeout))
        self.now += min(self._seconds, timeout)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        self.done.append(Pause(seconds))
        self.now += seconds

    async def close(self) -> None:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class FakeClient(AwaitingClient):
    wire: Wire

    def _connect(self) -> Wire:
        return self.wire


Call: TypeAlias = Callable[[AwaitingClient], Coroutine[Any, Any, Any]]


def carry_out(
    call: Call,
    *answers: Any,
    target: Target = MODEL,
    limits: Limits = DEFAULT_LIMITS,
    retries: Retries = DEFAULT_RETRIES,
    seconds: float = 0.0,
) -> tuple[Any, FakeWire]:
    """What a call returns or raises, and the wire that it used."""
    wire = FakeWire(answers, seconds=seconds)
    pin = {"version": target.version, "label": target.label}
    client = FakeClient(wire, model=target.model, limits=limits, retries=retries, **pin)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(client_types, "time", SimpleNamespace(monotonic=lambda: wire.now))
        try:
            call(client).send(None)
        except StopIteration as end:
            return end.value, wire
        except ClientError as error:
            return error, wire
    raise AssertionError("a call awaits nothing but its wire")


def embedded(rows: int) -> dict[str, np.ndarray]:
    return {"embedding": np.zeros((rows, 2), np.float32)}


def embed(*images: bytes, timeout: float | None = None) -> Call:
    return lambda client: client.embed(images, timeout=timeout)


@pytest.mark.parametrize("failure", [Unavailable("gone"), Overloaded("queue full")])
def test_what_may_pass_is_asked_again(failure: ClientError) -> None:
    result, wire = carry_out(embed(b"a"), failure, failure, embedded(1))
    assert result.shape == (1, 2)
    assert [type(step) for step in wire.done] == [Send, Pause, Send, Pause, Send]


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
def test_everything_else_is_asked_once(failure: ClientError) -> None:
    result, wire = carry_out(embed(b"a"), failure)
    assert result is failure
    assert len(wire.done) == 1


def test_tries_are_counted() -> None:
    failure = Unavailable("gone")
    result, wire = carry_out(embed(b"a", timeout=1000), failure, retries=Retries(attempts=3))
    assert result is failure
    assert sum(isinstance(step, Send) for step in wire.done) == 3


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
    answers = [Unavailable("gone") if fails else embedded(1) for fails in failing]
    result, wire = carry_out(
        embed(*[b"a"] * images, timeout=seconds),
        *answers,
        embedded(1),
        limits=Limits(images=1),
        retries=Retries(attempts=99, first_pause=first_pause),
        seconds=each,
    )
    assert wire.now <= 1000 + seconds + 1e-6
    assert all(step.timeout > 0 for step in wire.done if isinstance(step, Send))
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


def test_a_server_that_says_when_is_not_asked_earlier() -> None:
    failure = Overloaded("full", retry_after=7.0)
    _, wire = carry_out(embed(b"a", timeout=100), failure, embedded(1))
    assert wire.done[1] == Pause(7.0)


def test_a_pause_that_does_not_fit_is_not_begun() -> None:
    failure = Overloaded("full", retry_after=7.0)
    result, wire = carry_out(embed(b"a", timeout=5), failure)
    assert result is failure
    assert len(wire.done) == 1


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    images=st.integers(1, 10),
    size=st.integers(1, 100),
)
def test_requests_keep_the_order_and_the_limits(sizes: list[int], images: int, size: int) -> None:
    given_images = [bytes([place]) * length for place, length in enumerate(sizes)]

    def answer(request: Predict) -> dict[str, np.ndarray]:
        places = [[image[0], len(image)] for image in request.inputs["image"]]
        return {"embedding": np.array(places, np.float32)}

    result, wire = carry_out(embed(*given_images), answer, limits=Limits(images=images, bytes=size))
    np.testing.assert_array_equal(result, list(enumerate(sizes)))
    sent = [step.request.inputs["image"] for step in wire.done]
    assert [image for chunk in sent for image in chunk] == given_images
    for chunk in sent:
        assert 1 <= len(chunk) <= images
        assert len(chunk) == 1 or sum(map(len, chunk)) <= size


def test_a_refused_chunk_says_which_rows_it_held() -> None:
    result, _ = carry_out(
        embed(b"a", b"b", b"c"),
        embedded(2),
        InvalidRequest("image refused"),
        limits=Limits(images=2),
    )
    assert isinstance(result, InvalidRequest)
    assert "in rows 2 to 2: image refused" in str(result)


@pytest.mark.parametrize(
    "answer", [{}, {"embedding": np.zeros((2, 2), np.float32)}], ids=["no output", "other rows"]
)
def test_an_answer_that_does_not_fit_is_the_servers_fault(answer: dict[str, Any]) -> None:
    result, _ = carry_out(embed(b"a"), answer)
    assert isinstance(result, ServerError)


def refused(call: Call) -> str:
    """Why a call is refused before anything is sent."""
    result, wire = carry_out(call, ServerError("it was sent"))
    assert isinstance(result, InvalidRequest)
    assert not wire.done
    return str(result)


def test_nothing_is_nothing_to_send() -> None:
    assert "no image" in refused(embed())
    assert "no image" in refused(lambda client: client.score([b"a"], []))


def test_lists_of_different_lengths_are_refused_before_anything_is_sent() -> None:
    reason = refused(lambda client: client.score([b"a"] * 2, [b"a"] * 3))
    assert "2 images cannot be compared with 3" in reason


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
    assert refused(lambda client: client.match(a, b))


def test_a_pin_is_a_version_or_a_label_not_both() -> None:
    with pytest.raises(ValueError, match="not both"):
        Target("siamese", version=1, label="stable")


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_timeout_is_more_than_nothing(seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Deadline(seconds)


def status(version: int, state: str, code: Code = Code.OK, message: str = "") -> VersionStatus:
    return VersionStatus(version, state, code, message)


def wait_ready(timeout: float) -> Call:
    return lambda client: client.wait_ready(timeout=timeout)


def test_waiting_goes_on_while_there_is_no_server_no_model_and_no_loaded_version() -> None:
    result, _ = carry_out(
        wait_ready(60),
        Unavailable("connection refused"),
        NotFound("no such model"),
        DeadlineExceeded("this poll took too long"),
        [status(7, "LOADING")],
        [status(6, "UNLOADING"), status(7, "AVAILABLE")],
        7,
    )
    assert result == 7


def test_waiting_for_a_label_goes_on_until_the_server_knows_it() -> None:
    loaded = [status(6, "AVAILABLE"), status(7, "AVAILABLE")]
    unknown = InvalidRequest("Unrecognized servable version label")
    label = Target("siamese", label="stable")
    result, _ = carry_out(wait_ready(60), loaded, unknown, loaded, 6, target=label)
    assert result == 6


@pytest.mark.parametrize("failure", [Unauthorized("who?"), InvalidRequest("what?")])
def test_waiting_ends_where_it_cannot_help(failure: ClientError) -> None:
    result, wire = carry_out(wait_ready(60), failure)
    assert result is failure
    assert len(wire.done) == 1


def test_waiting_in_vain_says_what_was_seen_last() -> None:
    failed = [status(7, "END", Code.DATA_LOSS, "variables are missing")]
    result, _ = carry_out(wait_ready(3), failed)
    assert isinstance(result, DeadlineExceeded)
    assert "version 7 is END (DATA_LOSS: variables are missing)" in result.message
