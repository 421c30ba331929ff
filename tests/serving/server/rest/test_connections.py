"""Connections of clients that are slow, endless or do not speak HTTP, on a real socket."""

import asyncio
import codecs
import contextlib
import gzip
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.server.rest.app import rest_app
from serving.server.rest.limits import RestConfig, RestProtocol
from serving.server.rest.protocol import RestOptions
from tests.serving.server.rest.fakes import NAME, EchoState

HASTY = RestOptions(
    header_seconds=0.3,
    body_seconds=0.3,
    keep_alive_seconds=0.3,
    max_header_bytes=4096,
    max_body_bytes=100_000,
    token=None,
)
STATUS = f"/v1/models/{NAME}"
GET = f"GET {STATUS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@contextlib.contextmanager
def serving(options: RestOptions) -> Iterator[tuple[str, int]]:
    with serving_with_server(options) as (address, _):
        yield address


@contextlib.contextmanager
def serving_with_server(
    options: RestOptions,
) -> Iterator[tuple[tuple[str, int], uvicorn.Server]]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(RestConfig(rest_app(EchoState(), options=options), options))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname(), server
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with serving(HASTY) as where:
        yield where


def talk(address: tuple[str, int], *parts: bytes) -> bytes:
    """Sends the parts, and reads until the server hangs up."""
    with socket.create_connection(address, timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def test_a_connection_is_kept_for_further_requests(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}") as client:
        ports = set()
        for _ in range(3):
            reply = client.get(STATUS)
            assert reply.status_code == 200
            ports.add(reply.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(ports) == 1


def test_replies_do_not_wait_for_acknowledgements() -> None:
    with (
        serving_with_server(HASTY) as (address, server),
        socket.create_connection(address) as connection,
    ):
        connection.sendall(GET)
        assert connection.recv(100)
        (protocol,) = server.server_state.connections
        accepted = protocol.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_idle_connection_is_closed(address: tuple[str, int]) -> None:
    assert talk(address, GET).startswith(b"HTTP/1.1 200")


def test_a_client_that_says_nothing_is_hung_up_on(address: tuple[str, int]) -> None:
    assert talk(address).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("begin", [b"", GET])
def test_a_head_that_does_not_end_is_given_up(address: tuple[str, int], begin: bytes) -> None:
    received = talk(address, begin, b"POST /v1/models HTTP/1.1\r\nX-Slow: ")
    assert b"HTTP/1.1 408" in received
    assert received.endswith(b"}")


def test_a_body_that_does_not_end_is_given_up(address: tuple[str, int]) -> None:
    head = f"POST {STATUS}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
    assert talk(address, head, b'{"instances"').startswith(b"HTTP/1.1 408")


def test_an_endless_head_is_cut_off(address: tuple[str, int]) -> None:
    received = b""
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(100_000):
                connection.sendall(b"X-%d: %s\r\n" % (number, b"x" * 100))
        with contextlib.suppress(ConnectionError):
            received = connection.recv(65536)
    assert received == b"" or received.startswith(b"HTTP/1.1 431")
    assert talk(address, GET).startswith(b"HTTP/1.1 200")


def test_a_head_too_large_is_named(address: tuple[str, int]) -> None:
    received = talk(address, b"GET / HTTP/1.1\r\nX: " + b"x" * 5000)
    assert received.startswith(b"HTTP/1.1 431")
    assert received.endswith(b'{"error":"Request head is larger than 4096 bytes"}')


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\0\0\0\0\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /v1/models/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_answered_or_hung_up_on(
    address: tuple[str, int], nonsense: bytes
) -> None:
    received = talk(address, nonsense)
    assert received.startswith(b"HTTP/1.1 4")
    assert b'{"error":' in received
    assert talk(address, GET).startswith(b"HTTP/1.1 200")


def head(
    *fields: bytes, target: bytes = STATUS.encode() + b":predict", version: bytes = b"1.1"
) -> bytes:
    lines = [b"POST %s HTTP/%s" % (target, version), b"Host: localhost", *fields]
    return b"\r\n".join([*lines, b"", b""])


BODY = b'{"signature_name":"one","instances":[1.5]}'
SIZE = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"3\r\n%s\r\n%x;a=b\r\n%s\r\n0\r\n" % (BODY[:3], len(BODY) - 3, BODY[3:])
# As curl --http2, Java's HttpClient and browsers offer another protocol.
H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAA")
WEBSOCKET = (
    b"upgrade: WebSocket",
    b"connection: keep-alive, upgrade",
    b"Sec-WebSocket-Version: 13",
)
ANSWER = b'{"predictions":[1.5]}'
SHOUTED = tuple(field.upper() for field in H2C)


@pytest.mark.parametrize("offer", [H2C, SHOUTED, WEBSOCKET], ids=["h2c", "H2C", "websocket"])
@pytest.mark.parametrize(
    "sent",
    [(SIZE, BODY), (CHUNKED, CHUNKS + b"\r\n"), (CHUNKED, CHUNKS + b"X-Sum: 1\r\n\r\n")],
    ids=["sized", "chunked", "trailers"],
)
def test_a_client_that_offers_another_protocol_is_answered_in_this_one(
    address: tuple[str, int], offer: tuple[bytes, ...], sent: tuple[bytes, bytes]
) -> None:
    framing, body = sent
    whole = head(*offer, framing) + body
    assert talk(address, whole + whole + GET).count(ANSWER) == 2
    kept = talk(address, whole, head(framing) + body, GET)
    assert (kept.count(b"HTTP/1.1 200"), kept.count(ANSWER)) == (3, 2)


def test_an_upgrade_without_a_body_is_an_ordinary_request(address: tuple[str, int]) -> None:
    upgrade = b"\r\n".join([GET[:-4], *WEBSOCKET, b"", b""])
    assert talk(address, upgrade * 50).count(b"HTTP/1.1 200") == 50


@pytest.mark.parametrize(
    ("fields", "version"),
    [((b"Connection: close, Upgrade", b"Upgrade: h2c"), b"1.1"), (H2C, b"1.0")],
)
def test_an_upgrade_on_a_last_request_is_passed_over(
    address: tuple[str, int], fields: tuple[bytes, ...], version: bytes
) -> None:
    received = talk(address, head(*fields, SIZE, version=version) + BODY + GET)
    assert received.count(ANSWER) == received.count(b"HTTP/1.1") == 1
    assert b"connection: close" in received


def test_a_body_is_asked_for_once_where_an_upgrade_is_offered(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head(*H2C, SIZE, b"Expect: 100-continue"))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_limits_hold_where_an_upgrade_is_offered(address: tuple[str, int]) -> None:
    with_length = b"Content-Length: %d"
    assert talk(address, head(*H2C, with_length % 1000), BODY).startswith(b"HTTP/1.1 408")
    assert talk(address, head(*H2C, with_length % 10**9)).startswith(b"HTTP/1.1 413")
    assert talk(address, head(*H2C)[:-2]).startswith(b"HTTP/1.1 408")
    assert talk(address, head(*H2C, b"X: " + b"x" * 5000)[:-2]).startswith(b"HTTP/1.1 431")
    smuggled = talk(address, head(*H2C, SIZE, CHUNKED) + CHUNKS + b"\r\n")
    assert smuggled.startswith(b"HTTP/1.1 400")


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closing = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def answered(config: RestConfig, *segments: bytes) -> bytes:
    """What a connection writes on these segments."""
    state, wire = ServerState(), Wire()
    protocol = RestProtocol(config, state, {})
    protocol.connection_made(wire)
    for segment in segments:
        protocol.data_received(segment)
    while state.tasks:
        await asyncio.gather(*state.tasks)
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    return wire.written


def test_requests_may_be_cut_anywhere() -> None:
    config = RestConfig(rest_app(EchoState(), options=HASTY), HASTY)
    config.load()
    both = head(*H2C, SIZE) + BODY + head(*WEBSOCKET, CHUNKED) + CHUNKS + b"\r\n"

    async def check() -> None:
        for at in range(1, len(both)):
            received = await answered(config, both[:at], both[at:])
            assert (received.count(b"HTTP/1.1 200"), received.count(ANSWER)) == (2, 2), at
        single = [both[at : at + 1] for at in range(len(both))]
        assert (await answered(config, *single)).count(ANSWER) == 2

    asyncio.run(check())


@pytest.mark.parametrize(
    ("field", "body"),
    [
        (b"content-type: application/json;charset=utf-8", BODY),
        (b"Content-Type: application/x-www-form-urlencoded", BODY),
        (b"Content-Type: text/plain", codecs.BOM_UTF8 + BODY + b"\r\n"),
        (b"content-encoding: GZIP", gzip.compress(BODY, mtime=0)),
        (b"Content-Encoding: x-gzip", gzip.compress(BODY, mtime=0)),
        (b"Expect: 200-maybe", BODY),
        (b"X-Name: J\xf6rg", BODY),
    ],
)
def test_what_clients_say_of_a_body_is_taken_as_tf_serving_does(
    address: tuple[str, int], field: bytes, body: bytes
) -> None:
    request = head(field, b"content-length: %d" % len(body)) + body
    assert talk(address, request).count(ANSWER) == 1


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (head(SIZE, version=b"1.0") + BODY, 1),
        (head(SIZE, b"Connection: Keep-Alive", version=b"1.0") + BODY, 1),
        (head(SIZE, target=b"http://server:8501" + STATUS.encode() + b":predict") + BODY, 1),
        (head(SIZE, target=STATUS.encode() + b":predict?key=1") + BODY, 1),
        ((b"\r\n" + head(SIZE) + BODY) * 2 + b"\r\n", 2),
        (head(SIZE, b"TE: trailers", b"Connection: TE, close") + BODY, 1),
        (head(CHUNKED.swapcase()) + CHUNKS + b"X-Sum: 1\r\n\r\n" + head(SIZE) + BODY, 2),
    ],
    ids=["http10", "http10_keep", "absolute", "query", "empty_lines", "te", "trailers"],
)
def test_unusual_requests_are_answered(address: tuple[str, int], sent: bytes, answers: int) -> None:
    received = talk(address, sent)
    assert received.count(ANSWER) == received.count(b"HTTP/1.1 200") == answers


@pytest.mark.parametrize("method", [b"HEAD", b"OPTIONS", b"PUT"])
def test_methods_that_are_not_served_leave_the_connection_in_order(
    address: tuple[str, int], method: bytes
) -> None:
    received = talk(address, GET.replace(b"GET", method), GET)
    assert received.startswith(b"HTTP/1.1 400")
    assert received.count(b"HTTP/1.1 200") == 1


def test_a_huge_body_is_refused_before_it_is_sent(address: tuple[str, int]) -> None:
    url = f"http://{address[0]}:{address[1]}{STATUS}:predict"

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 65536

    announced = httpx.post(url, content=endless(), headers={"Content-Length": "10000000000"})
    assert announced.status_code == 413
    counted = httpx.post(url, content=endless())
    assert counted.status_code == 413


def test_a_client_that_does_not_read_is_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with contextlib.suppress(ConnectionError, TimeoutError):
            # Far more replies than the buffers of both sides hold; the server stops reading.
            for _ in range(100_000):
                connection.sendall(GET * 10)
            raise AssertionError("the server took everything")
    assert talk(address, GET).startswith(b"HTTP/1.1 200")


def test_beyond_the_most_connections_requests_are_refused() -> None:
    options = RestOptions(max_connections=2, keep_alive_seconds=5)
    with serving(options) as address, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address)) for _ in range(3)]
        idle[-1].sendall(GET)
        assert idle[-1].recv(100).startswith(b"HTTP/1.1 503")
