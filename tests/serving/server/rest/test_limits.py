"""The token, and limits on the bodies of requests."""

import asyncio
import gzip
from typing import Any

import pytest

from serving.server.metrics import METRICS_PATH
from serving.server.rest.app import rest_app
from serving.server.rest.limits import Guard
from serving.server.rest.protocol import RestOptions
from tests.serving.server.rest.fakes import NAME, EchoState, call

PREDICT = f"/v1/models/{NAME}:predict"
GOOD = b'{"signature_name": "one", "inputs": [1.0]}'
SMALL = RestOptions(max_body_bytes=1000, max_bytes_in_flight=2000)


def app(options: RestOptions) -> Any:
    return rest_app(EchoState(), options=options)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer secre"},
        {"Authorization": "Basic secret"},
        {"Authorization": "secret"},
        {"Authorization": b"Bearer \xff\xfe"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", PREDICT), ("GET", f"/v1/models/{NAME}"), ("GET", METRICS_PATH), ("GET", "/")],
)
def test_nothing_is_answered_without_the_token(
    headers: dict[str, Any], method: str, path: str
) -> None:
    reply = call(app(RestOptions(token="secret")), method, path, headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert "token" in reply.json()["error"]


@pytest.mark.parametrize("kind", ["Bearer", "bearer"])
def test_the_token_opens_everything(kind: str) -> None:
    headers = {"Authorization": f"{kind} secret"}
    reply = call(app(RestOptions(token="secret")), "POST", PREDICT, content=GOOD, headers=headers)
    assert reply.status_code == 200


def test_probes_may_be_let_in_without_it() -> None:
    opened = app(RestOptions(token="secret", open_status=True))
    assert call(opened, "GET", f"/v1/models/{NAME}").status_code == 200
    assert call(opened, "GET", f"/v1/models/{NAME}/versions/7").status_code == 200
    for path in (f"/v1/models/{NAME}/metadata", METRICS_PATH, "/v1/models", "/"):
        assert call(opened, "GET", path).status_code == 401
    assert call(opened, "POST", PREDICT, content=GOOD).status_code == 401


def test_a_body_too_large_is_refused_by_its_length_and_by_counting() -> None:
    async def unannounced() -> Any:
        for _ in range(100):
            yield b"x" * 100

    for content in (b"x" * 1001, unannounced()):
        reply = call(app(SMALL), "POST", PREDICT, content=content)
        assert reply.status_code == 413
        assert reply.json() == {"error": "Request body is larger than 1000 bytes"}
        assert reply.headers["connection"] == "close"


def test_a_body_of_just_the_largest_size_is_read() -> None:
    body = GOOD.ljust(1000)
    assert call(app(SMALL), "POST", PREDICT, content=body).status_code == 200


def test_gzip_is_undone() -> None:
    headers = {"Content-Encoding": "gzip"}
    reply = call(app(SMALL), "POST", PREDICT, content=gzip.compress(GOOD, mtime=0), headers=headers)
    assert (reply.status_code, reply.json()) == (200, {"outputs": [1.0]})


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(b" " * 1001, mtime=0), "gzip", 413),
        (gzip.compress(b" " * 10_000_000, mtime=0)[:900], "gzip", 413),
        (gzip.compress(GOOD, mtime=0)[:-3], "gzip", 400),
        (gzip.compress(GOOD, mtime=0) + b"x", "gzip", 400),
        (GOOD, "gzip", 400),
        (b"", "gzip", 400),
        (GOOD, "br", 400),
        (GOOD, "identity", 200),
    ],
)
def test_an_encoding_is_no_way_around_the_limit(body: bytes, encoding: str, status: int) -> None:
    headers = {"Content-Encoding": encoding}
    reply = call(app(SMALL), "POST", PREDICT, content=body, headers=headers)
    assert reply.status_code == status


class Clients:
    """Requests to a Guard, of which the application behind it keeps the first ones waiting."""

    def __init__(self, options: RestOptions) -> None:
        self.release = asyncio.Event()
        self.guard = Guard(self._slow, options)

    async def _slow(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await self.release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def post(self, *messages: Any) -> int:
        """Sends a body; ends with its status, or 0 if there was none."""
        waiting = list(messages)
        statuses = [0]

        async def receive() -> Any:
            if waiting:
                return waiting.pop(0)
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {"type": "http", "method": "POST", "path": PREDICT, "headers": []}
        await self.guard(scope, receive, send)
        return statuses[-1]


def body(size: int, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": b"x" * size, "more_body": more}


def test_all_bodies_together_have_a_limit_and_leave_no_trace() -> None:
    async def run() -> tuple[list[int], int, int]:
        clients = Clients(SMALL)
        first = [asyncio.create_task(clients.post(body(900))) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await clients.post(body(900))
        clients.release.set()
        answered = [await task for task in first]
        return answered, refused, await clients.post(body(1000))

    assert asyncio.run(run()) == ([200, 200], 429, 200)


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    async def run() -> tuple[int, int]:
        clients = Clients(RestOptions(body_seconds=0.05, max_bytes_in_flight=1000))
        slow = await clients.post(body(600, more=True))
        clients.release.set()
        return slow, await clients.post(body(600))

    assert asyncio.run(run()) == (408, 200)


def test_a_client_that_leaves_is_forgotten() -> None:
    async def run() -> tuple[int, int]:
        clients = Clients(SMALL)
        gone = await clients.post(body(900, more=True), {"type": "http.disconnect"})
        clients.release.set()
        return gone, await clients.post(body(1000))

    assert asyncio.run(run()) == (0, 200)
