"""Connections of clients that are slow, endless or do not speak HTTP, on a real socket."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

from serving.server.rest.app import rest_app
from serving.server.rest.limits import RestConfig
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


def test_an_upgrade_is_an_ordinary_request(address: tuple[str, int]) -> None:
    upgrade = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert talk(address, upgrade).startswith(b"HTTP/1.1 200")


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
