"""Proxies that the environment names: asked for servers elsewhere, never for this machine."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from serving.client import rest
from serving.client.grpc import AsyncGrpcClient, GrpcClient, split_address
from serving.client.proxies import Scheme, is_own_machine, proxy_of, split_authority
from serving.client.rest import AsyncClient, Client
from serving.client.types import (
    ClientError,
    InvalidSetting,
    Retries,
    Unauthorized,
    Unavailable,
)
from tests.serving.client.fake_server import FakeModel, grpc_server, rest_server

REST = (Client, AsyncClient)
GRPC = (GrpcClient, AsyncGrpcClient)
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
IMAGE = np.eye(16)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


class FakeProxy:
    """Leads every connection to `server`, or answers by itself; keeps the first lines of each."""

    def __init__(self, server: str = "", *, answer: bytes = b"") -> None:
        self._server = server
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.asked: list[bytes] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._lead, args=(connection,), daemon=True).start()

    def _lead(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            begin = client.recv(65536)
            self.asked.append(begin.partition(b"\r\n")[0])
            if self._answer:
                client.sendall(self._answer)
                return
            host, port = self._server.rsplit(":", 1)
            with socket.create_connection((host, int(port))) as server:
                if begin.startswith(b"CONNECT"):
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                else:
                    server.sendall(begin.replace(b"http://far.invalid:8501", b""))
                threading.Thread(target=_pass_on, args=(client, server), daemon=True).start()
                _pass_on(server, client)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


@contextlib.contextmanager
def proxy(server: str = "", *, answer: bytes = b"") -> Iterator[FakeProxy]:
    fake = FakeProxy(server, answer=answer)
    try:
        yield fake
    finally:
        fake.close()


def embed(cls: type[Any], address: str, **options: Any) -> Any:
    """What a client of this class answers, blocking or not."""
    client = cls(address, retries=Retries(attempts=1), **options)
    if cls in (Client, GrpcClient):
        with client:
            return client.embed(IMAGE)

    async def ask() -> Any:
        async with client:
            return await client.embed(IMAGE)

    return asyncio.run(ask())


@pytest.mark.parametrize("capitals", [False, True])
@pytest.mark.parametrize("cls", [*REST, *GRPC])
def test_no_proxy_leads_to_ones_own_machine(
    cls: type[Any], capitals: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = rest_server if cls in REST else grpc_server
    with serve(FakeModel()) as address, proxy(answer=b"HTTP/1.1 502 Bad\r\n\r\n") as fake:
        for name in VARIABLES:
            monkeypatch.setenv(name.upper() if capitals else name, fake.url)
        for host in ("127.0.0.1", "localhost"):
            assert embed(cls, address.replace("127.0.0.1", host)).shape == (1, 3)
        assert fake.asked == []


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("cls", REST)
def test_a_rest_server_elsewhere_is_asked_through_the_proxy(
    cls: type[Any], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rest_server(FakeModel()) as url, proxy(url.removeprefix("http://")) as fake:
        monkeypatch.setenv(variable, fake.url.removeprefix("http://"))
        assert embed(cls, "http://far.invalid:8501").shape == (1, 3)
        path = b"http://far.invalid:8501/v1/models/siamese:predict"
        assert fake.asked == [b"POST %s HTTP/1.1" % path]


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
@pytest.mark.parametrize("cls", GRPC)
def test_a_grpc_server_elsewhere_is_asked_through_the_proxy(
    cls: type[Any], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with grpc_server(FakeModel()) as address, proxy(address) as fake:
        monkeypatch.setenv(variable, fake.url)
        assert embed(cls, "far.invalid:8500").shape == (1, 3)
        assert fake.asked == [b"CONNECT far.invalid:8500 HTTP/1.1"]


@pytest.mark.parametrize("cls", [*REST, *GRPC])
def test_an_exception_is_reached_without_the_proxy(
    cls: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(answer=b"HTTP/1.1 502 Bad\r\n\r\n") as fake:
        monkeypatch.setenv("http_proxy", fake.url)
        monkeypatch.setenv("NO_PROXY", "::1, [2001:db8::1]:1, far.invalid")
        address = "http://far.invalid:1" if cls in REST else "far.invalid:1"
        with pytest.raises(Unavailable) as caught:
            embed(cls, address, timeout=3)
        assert fake.asked == []
        assert "proxy" not in caught.value.message


@pytest.mark.parametrize(
    ("cls", "variable"),
    [(cls, "HTTP_PROXY") for cls in REST] + [(cls, "grpc_proxy") for cls in GRPC],
)
def test_a_proxy_that_is_not_there_is_named_with_its_variable(
    cls: type[Any], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://me:secret@127.0.0.1:1")
    address = "http://far.invalid:8501" if cls in REST else "far.invalid:8500"
    with pytest.raises(Unavailable) as caught:
        embed(cls, address)
    assert f"through the proxy http://127.0.0.1:1 that {variable} names" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("cls", REST)
def test_a_proxy_that_asks_for_a_password_is_named(
    cls: type[Any], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 5\r\n\r\nwho?\n"
    with proxy(answer=page) as fake:
        monkeypatch.setenv("ALL_PROXY", fake.url)
        with pytest.raises(Unauthorized, match="that ALL_PROXY names"):
            embed(cls, f"{scheme}://far.invalid:8501")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("socks5://u:secret@10.0.0.1:1080", r"pip install 'httpx\[socks\]'"),
        ("socks://10.0.0.1:1080", "no URL of http://"),
        ("http://", "no host"),
        ("http://10.0.0.1:port", "no URL of http://"),
        ("http://10.0.0.1:99999", "no URL of http://"),
    ],
)
@pytest.mark.parametrize("cls", REST)
def test_a_proxy_that_cannot_be_asked_is_refused_at_once(
    cls: type[Any], url: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "_SOCKS_ERRORS", ())
    monkeypatch.setenv("ALL_PROXY", url)
    with pytest.raises(InvalidSetting, match=f"{why}.*; correct ALL_PROXY") as caught:
        cls("http://10.1.1.1:8501")
    assert isinstance(caught.value, ClientError)
    assert "secret" not in str(caught.value)
    # Nobody asks it for these.
    cls("http://127.0.0.1:8501")
    monkeypatch.setenv("NO_PROXY", "[::1],10.1.0.0/16")
    cls("http://10.1.1.1:8501")


def test_what_socks_itself_raises_is_a_client_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Malformed(Exception):
        """As socksio's, which httpx lets through."""

    def ask(_: httpx.Request) -> httpx.Response:
        raise Malformed("reply")

    for name in ("_FAILURES", "_SOCKS_ERRORS"):
        monkeypatch.setattr(rest, name, (Malformed,))
    for cls in REST:
        with pytest.raises(Unavailable, match="Malformed: reply"):
            embed(cls, "http://far.invalid", transport=httpx.MockTransport(ask))


def test_a_transport_of_ones_own_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://nonsense")
    answer = httpx.MockTransport(lambda _: httpx.Response(200, json={"outputs": [[1.0]]}))
    assert embed(Client, "http://far.invalid", transport=answer).shape == (1, 1)


@pytest.mark.parametrize("url", ["http://host:x", "http://[::1", "http://host:99999", "http://\0"])
@pytest.mark.parametrize("cls", REST)
def test_an_address_that_makes_no_sense_is_refused_at_once(cls: type[Any], url: str) -> None:
    with pytest.raises(InvalidSetting, match="http://host:port"):
        cls(url)


@pytest.mark.parametrize(
    ("no_proxy", "server", "direct"),
    [
        ("", "far.org:80", False),
        ("*", "far.org:80", True),
        ("far.org", "far.org:80", True),
        ("FAR.ORG.", "a.far.org:80", True),
        (".far.org", "a.far.org:80", True),
        ("*.far.org", "a.far.org:80", True),
        ("far.org", "afar.org:80", False),
        ("near.org far.org", "far.org:80", True),
        ("near.org, far.org:80", "far.org:80", True),
        ("far.org:81", "far.org:80", False),
        ("http://far.org", "far.org:80", True),
        ("https://far.org", "far.org:80", False),
        ("10.0.0.1", "10.0.0.1:80", True),
        ("10.0.0.1", "10.0.0.10:80", False),
        ("10.0.0.1:80", "10.0.0.1:80", True),
        ("10.0.0.0/8", "10.1.2.3:80", True),
        ("10.0.0.0/8", "11.1.2.3:80", False),
        ("10.0.0.0/8", "[::ffff:10.1.2.3]:80", True),
        ("2001:db8::1", "[2001:db8::1]:80", True),
        ("[2001:db8::1]", "[2001:DB8:0::1]:80", True),
        ("[2001:db8::1]:80", "[2001:db8::1]:80", True),
        ("[2001:db8::1]:81", "[2001:db8::1]:80", False),
        ("2001:db8::/32", "[2001:db8::1]:80", True),
        ("0.1", "10.0.0.1:80", False),
        ("[::1,[,://,/,http://[", "far.org:80", False),
    ],
)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_exceptions_are_understood_in_every_form(
    variable: str, no_proxy: str, server: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv(variable, no_proxy)
    host, port = split_authority(server)
    assert (proxy_of("http", host, port) is None) is direct
    if "http" not in no_proxy:
        assert (proxy_of("grpc", host, port) is None) is direct


@pytest.mark.parametrize(
    ("scheme", "named", "expected"),
    [
        ("http", {"https_proxy": "https://p"}, None),
        ("https", {"HTTPS_PROXY": "p:1", "http_proxy": "q"}, ("http://p:1", "HTTPS_PROXY")),
        ("http", {"HTTP_PROXY": "p", "http_proxy": "q"}, ("http://q", "http_proxy")),
        ("http", {"HTTP_PROXY": "p", "http_proxy": ""}, None),
        ("http", {"all_proxy": "socks5h://p", "http_proxy": "q"}, ("http://q", "http_proxy")),
        ("grpc", {"HTTP_PROXY": "http://p", "all_proxy": "http://q"}, None),
        ("grpc", {"http_proxy": "http://p", "grpc_proxy": "q"}, ("http://q", "grpc_proxy")),
        ("grpc", {"https_proxy": "socks5://p", "http_proxy": "q"}, None),
        (
            "grpc",
            {"http_proxy": "p", "no_proxy": "far.org", "no_grpc_proxy": "x"},
            ("http://p", "http_proxy"),
        ),
        ("grpc", {"http_proxy": "p", "no_grpc_proxy": "far.org"}, None),
        ("http", {"http_proxy": "p", "no_grpc_proxy": "far.org"}, ("http://p", "http_proxy")),
    ],
)
def test_the_variable_that_counts_is_the_protocols(
    scheme: Scheme,
    named: dict[str, str],
    expected: tuple[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(scheme, "far.org", 80) == expected


@pytest.mark.parametrize(
    ("address", "expected", "own"),
    [
        ("127.0.0.1:8500", ("127.0.0.1", 8500), True),
        ("127.9.9.9", ("127.9.9.9", None), True),
        ("LocalHost.:8500", ("localhost", 8500), True),
        ("[::1]:8500", ("::1", 8500), True),
        ("[::1]", ("::1", None), True),
        ("::1", ("::1", None), True),
        ("[::ffff:127.0.0.1]:1", ("::ffff:127.0.0.1", 1), True),
        ("0.0.0.0:1", ("0.0.0.0", 1), True),
        ("dns:///localhost:8500", ("localhost", 8500), True),
        ("dns://8.8.8.8/far.org:8500", ("far.org", 8500), False),
        ("dns:far.org", ("far.org", None), False),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", ("127.0.0.1", 1), True),
        ("ipv6:%5B::1%5D:8500", ("::1", 8500), True),
        ("10.0.0.1:8500", ("10.0.0.1", 8500), False),
        ("127.0.0.1.far.org", ("127.0.0.1.far.org", None), False),
        ("unix:/run/server.socket", ("", None), False),
        ("unix:///run/server.socket", ("", None), False),
    ],
)
def test_addresses_of_grpc_are_understood(
    address: str, expected: tuple[str, int | None], own: bool
) -> None:
    assert split_address(address) == expected
    assert is_own_machine(expected[0]) is own
