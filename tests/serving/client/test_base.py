"""What the four clients have in common, each against a server that speaks its protocol."""

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from serving.client import types as client_errors
from serving.client.calls import AwaitingClient, BlockingClient
from serving.client.grpc import AsyncGrpcClient, GrpcClient
from serving.client.rest import AsyncClient, Client
from serving.client.types import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    Limits,
    NotFound,
    Overloaded,
    Retries,
    ServerError,
    Unauthorized,
    Unavailable,
)
from serving.errors import Code, ServingError
from tests.serving.client.fake_server import FakeModel, grpc_server, rest_server

pytestmark = pytest.mark.usefixtures("raw_bytes")
CLASSES: dict[str, type[Any]] = {
    "rest": Client,
    "rest-async": AsyncClient,
    "grpc": GrpcClient,
    "grpc-async": AsyncGrpcClient,
}
QUICK = Retries(first_pause=0.001, longest_pause=0.01)


class Blocking:
    """An asyncio client whose calls block, so that one test fits all."""

    def __init__(self, client: AwaitingClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name == "pinned":
            return lambda **pin: Blocking(method(**pin), self._loop)
        if not inspect.iscoroutinefunction(method):
            return method
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))


@dataclass
class Setup:
    """A fake model, served, and a way to make clients of it."""

    model: FakeModel
    address: str
    kind: str
    loop: asyncio.AbstractEventLoop
    made: list[Any]

    def client(self, **options: Any) -> Any:
        client = CLASSES[self.kind](self.address, **{"retries": QUICK, **options})
        if self.kind.endswith("async"):
            client = Blocking(client, self.loop)
        self.made.append(client)
        return client


@pytest.fixture(params=list(CLASSES))
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    model = FakeModel()
    serve = rest_server if request.param.startswith("rest") else grpc_server
    loop = asyncio.new_event_loop()
    with serve(model) as address:
        made: list[Any] = []
        yield Setup(model, address, request.param, loop, made)
        model.hold.set()
        for client in made:
            client.close()
    loop.close()


def test_pairs_are_scored_in_their_order(setup: Setup) -> None:
    scores = setup.client().score([b"a", b"bcd", b"x"], [b"a", b"bcd", b"xyz"])
    np.testing.assert_allclose(scores.logit, [10, 10, 10 - 2 - 0 - 2])
    np.testing.assert_allclose(scores.score, 1 / (1 + np.exp(-scores.logit)), rtol=1e-6)
    assert scores.score.dtype == scores.logit.dtype == np.float32


def test_one_image_is_compared_with_each_of_several(setup: Setup) -> None:
    client = setup.client()
    one_to_three = client.score(b"a", [b"a", b"b", b"c"])
    np.testing.assert_allclose(one_to_three.logit, [10, 8, 6])
    np.testing.assert_allclose(client.score([b"a", b"b", b"c"], b"a").logit, [10, 8, 6])
    assert client.score(b"a", b"a").score.shape == (1,)


def test_many_images_go_in_several_requests_and_come_back_in_order(setup: Setup) -> None:
    images = [bytes([65 + place]) * (1 + place % 3) for place in range(10)]
    vectors = setup.client(limits=Limits(images=4)).embed(images)
    np.testing.assert_array_equal(vectors[:, 1], np.arange(65, 75))
    assert vectors.dtype == np.float32
    assert [call.rows for call in setup.model.calls] == [4, 4, 2]


def test_vectors_are_matched_as_exact_floats(setup: Setup) -> None:
    client = setup.client()
    a = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    expected = np.float32(10) - np.abs(a - a[0]).sum(axis=1, dtype=np.float32)
    np.testing.assert_array_equal(client.match(a, a[0]).logit, expected)
    np.testing.assert_array_equal(client.match(a[0], a).logit, expected)
    assert client.match(a[0], a[1].tolist()).score.shape == (1,)


def test_vectors_of_many_images_are_larger_than_grpcs_usual_limit(setup: Setup) -> None:
    setup.model.padding = 20_000
    vectors = setup.client(timeout=60).embed([b"a"] * 64)
    assert vectors.nbytes > 4 * 1024 * 1024


def test_statuses_are_typed_and_sorted(setup: Setup) -> None:
    setup.model.states = {7: "AVAILABLE", 1: "END"}
    client = setup.client()
    assert client.status() == [(1, "END", Code.OK, ""), (7, "AVAILABLE", Code.OK, "")]
    assert [status.version for status in client.pinned(version=7).status()] == [7]


def test_waiting_ends_when_the_version_is_loaded(setup: Setup) -> None:
    setup.model.states = {7: "LOADING"}
    loaded = threading.Timer(0.3, lambda: setup.model.states.update({7: "AVAILABLE"}))
    loaded.start()
    assert setup.client().wait_ready(timeout=60) == 7
    loaded.join()
    assert len(setup.model.calls) > 2


def test_waiting_for_a_label_gives_the_version_behind_it(setup: Setup) -> None:
    setup.model.states = {7: "AVAILABLE", 8: "AVAILABLE"}
    client = setup.client(label="stable")
    assert client.wait_ready() == 7
    assert client.pinned().wait_ready() == 8


def test_waiting_in_vain_says_what_was_seen(setup: Setup) -> None:
    setup.model.states = {7: "LOADING"}
    with pytest.raises(DeadlineExceeded, match="version 7 is LOADING"):
        setup.client().wait_ready(timeout=0.3)


def test_pins_reach_the_server(setup: Setup) -> None:
    client = setup.client(version=7)
    client.embed(b"a")
    client.pinned(label="stable").embed(b"a")
    client.pinned().embed(b"a")
    assert [(call.version, call.label) for call in setup.model.calls] == [
        (7, None),
        (None, "stable"),
        (None, None),
    ]


def test_connections_are_used_again_and_shared_with_pinned_clients(setup: Setup) -> None:
    client = setup.client()
    pinned = client.pinned(version=7)
    for _ in range(5):
        client.embed(b"a")
        pinned.embed(b"a")
    pinned.close()
    client.embed(b"a")
    assert len({call.peer for call in setup.model.calls}) == 1


def test_the_token_is_sent_with_every_request(setup: Setup) -> None:
    client = setup.client(token="secret")
    client.embed(b"a")
    client.wait_ready()
    assert {call.authorization for call in setup.model.calls} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.INVALID_ARGUMENT, InvalidRequest),
        (Code.FAILED_PRECONDITION, InvalidRequest),
        (Code.NOT_FOUND, NotFound),
        (Code.UNAUTHENTICATED, Unauthorized),
        (Code.PERMISSION_DENIED, Unauthorized),
        (Code.RESOURCE_EXHAUSTED, Overloaded),
        (Code.UNAVAILABLE, Unavailable),
        (Code.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Code.INTERNAL, ServerError),
        (Code.UNIMPLEMENTED, ServerError),
        (Code.ABORTED, ServerError),
        (Code.CANCELLED, ServerError),
    ],
)
def test_errors_are_the_same_over_both_protocols(
    setup: Setup, code: Code, expected: type[ClientError]
) -> None:
    setup.model.failures = [ServingError(code, "for a reason")]
    with pytest.raises(ClientError, match="for a reason") as caught:
        setup.client(retries=Retries(attempts=1)).embed(b"a")
    assert type(caught.value) is expected
    # REST has one status for INVALID_ARGUMENT and FAILED_PRECONDITION.
    assert caught.value.code.http == code.http


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED])
def test_a_busy_or_starting_server_is_asked_again(setup: Setup, code: Code) -> None:
    setup.model.failures = [ServingError(code, "later")] * 3
    assert setup.client().embed(b"a").shape == (1, 3)
    assert len(setup.model.calls) == 4


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.INVALID_ARGUMENT, Code.ABORTED])
def test_other_errors_are_not_asked_again(setup: Setup, code: Code) -> None:
    setup.model.failures = [ServingError(code, "no")]
    with pytest.raises(ClientError, match="no"):
        setup.client().embed(b"a")
    assert len(setup.model.calls) == 1


def test_a_refused_image_tells_in_which_rows_it_was(setup: Setup) -> None:
    with pytest.raises(InvalidRequest, match="in rows 2 to 3: image refused"):
        setup.client(limits=Limits(images=2)).embed([b"a", b"b", b"c", b"bad", b"e"])


def test_tensorflows_words_about_an_image_are_left_out(setup: Setup) -> None:
    message = "assertion failed: [image refused: neither PNG nor JPEG]\n\t [[{{node map/while/A}}]]"
    setup.model.failures = [ServingError(Code.INVALID_ARGUMENT, message)]
    with pytest.raises(InvalidRequest) as caught:
        setup.client().embed(b"a")
    assert caught.value.message == "image refused: neither PNG nor JPEG"


def test_a_server_that_does_not_answer_is_given_up_at_the_deadline(setup: Setup) -> None:
    client = setup.client()
    client.embed(b"a")  # connects, which takes its time on a busy machine
    setup.model.hold.clear()
    with pytest.raises(DeadlineExceeded):
        client.embed(b"a", timeout=0.5)
    assert len(setup.model.calls) == 2


def test_a_server_that_is_not_there_is_unavailable(setup: Setup) -> None:
    setup.address = "http://127.0.0.1:1" if setup.kind.startswith("rest") else "127.0.0.1:1"
    with pytest.raises(Unavailable):
        setup.client(retries=Retries(attempts=2, first_pause=0.001)).embed(b"a")


def test_a_client_may_be_shared_by_threads(setup: Setup) -> None:
    if setup.kind.endswith("async"):

        async def all_at_once(client: Any) -> list[np.ndarray]:
            return await asyncio.gather(*(client.embed(bytes([n + 1])) for n in range(40)))

        client = setup.client()
        vectors = setup.loop.run_until_complete(all_at_once(client._client))
    else:
        client = setup.client()
        with ThreadPoolExecutor(8) as pool:
            vectors = list(pool.map(lambda n: client.embed(bytes([n + 1])), range(40)))
    np.testing.assert_array_equal(np.concatenate(vectors)[:, 1], np.arange(1, 41))


def test_context_managers_close_the_client(setup: Setup) -> None:
    cls = CLASSES[setup.kind]

    async def awaiting() -> None:
        async with cls(setup.address) as client:
            assert (await client.embed(b"a")).shape == (1, 3)

    if setup.kind.endswith("async"):
        setup.loop.run_until_complete(awaiting())
        return
    with cls(setup.address) as client:
        assert client.embed(b"a").shape == (1, 3)
    with pytest.raises((RuntimeError, ValueError)):
        client.embed(b"a")


def test_all_clients_have_the_same_methods_with_the_same_arguments() -> None:
    for name in ("score", "embed", "match", "status", "wait_ready", "pinned", "close"):
        signatures = {
            str(inspect.signature(getattr(cls, name)))
            for cls in (BlockingClient, AwaitingClient, *CLASSES.values())
        }
        assert len(signatures) == 1, name


@pytest.mark.parametrize("cls", CLASSES.values())
def test_all_clients_take_the_same_options_and_name_one_that_is_wrong(cls: type[Any]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    options = {parameter.name for parameter in parameters if parameter.kind.name == "KEYWORD_ONLY"}
    assert options - {"transport"} == {
        *("model", "version", "label", "token", "tls", "timeout", "limits", "retries", "crop"),
    }
    with pytest.raises(TypeError, match="unexpected keyword argument 'timeot'"):
        cls(timeot=3)
    assert "secret" not in repr(cls(token="secret"))


def test_every_error_of_a_client_is_one_family() -> None:
    errors = [
        cls
        for _, cls in inspect.getmembers(client_errors, inspect.isclass)
        if issubclass(cls, Exception) and cls.__module__ == client_errors.__name__
    ]
    assert len(errors) > 8
    assert all(issubclass(cls, ClientError) for cls in errors)


def test_the_rest_client_needs_neither_tensorflow_nor_grpc() -> None:
    program = (
        "import sys\n"
        "import numpy\n"
        "from serving.client import Client\n"
        "from serving.client.images import encode_image\n"
        "encode_image(numpy.eye(9))\n"
        "heavy = {'tensorflow', 'tfx', 'keras', 'grpc', 'google.protobuf', 'PIL', 'pydantic',\n"
        "         'serving.server', 'serving.client.grpc'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
