"""What is special to REST: bytes on the wire, bad servers, proxies and TLS."""

import contextlib
import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.client.rest import AsyncClient, Client, read_answer, write_request
from serving.client.types import (
    ClientError,
    DeadlineExceeded,
    GetMetadata,
    GetStatus,
    InvalidRequest,
    Overloaded,
    Predict,
    Request,
    Retries,
    ServerError,
    Target,
    Tls,
    Unavailable,
)
from serving.errors import Code
from tests.serving.certificates import make_certificate

ONCE = Retries(attempts=1)
pytestmark = pytest.mark.usefixtures("raw_bytes")
EMBED = Predict(Target("siamese"), "embed", {"image": [b"\0\xff"]}, ("embedding",))
VECTOR = b'{"outputs": [[1.0, 2.0]]}'


@contextmanager
def raw_server(
    answer: Callable[[socket.socket], None], *, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Reads a request from every connection and lets `answer` do the rest; yields the URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            # The client may be gone, or not trust the certificate.
            with (
                connection,
                contextlib.suppress(OSError),
                tls.wrap_socket(connection, server_side=True) if tls else connection as spoken,
            ):
                spoken.recv(65536)
                answer(spoken)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def response(body: bytes, *, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def test_a_prediction_is_asked_for_in_the_column_format() -> None:
    method, path, body = write_request(EMBED)
    assert (method, path) == ("POST", "/v1/models/siamese:predict")
    assert json.loads(body or b"") == {
        "signature_name": "embed",
        "inputs": {"image": [{"b64": "AP8="}]},
    }


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (GetStatus, "/v1/models/a%2Fb%3A%20c"),
        (GetMetadata, "/v1/models/a%2Fb%3A%20c/metadata"),
    ],
)
def test_names_cannot_leave_their_place_in_the_path(
    make: Callable[[Target], Request], path: str
) -> None:
    assert write_request(make(Target("a/b: c"))).path == path


def test_versions_and_labels_are_in_the_path_but_labels_not_in_that_of_a_status() -> None:
    assert (
        write_request(GetMetadata(Target("m", version=3))).path
        == "/v1/models/m/versions/3/metadata"
    )
    assert write_request(GetMetadata(Target("m", label="x/y"))).path == (
        "/v1/models/m/labels/x%2Fy/metadata"
    )
    assert write_request(GetStatus(Target("m", label="x"))).path == "/v1/models/m"


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_floats_travel_exactly(values: list[float]) -> None:
    column = np.array([values], np.float32)
    request = Predict(Target("m"), "match", {"embedding_a": column}, ("logit",))
    sent = json.loads(write_request(request).body or b"")["inputs"]["embedding_a"]
    body = json.dumps({"outputs": sent}).encode()
    np.testing.assert_array_equal(read_answer(request, 200, {}, body)["logit"], column)


@given(
    request=st.sampled_from([EMBED, GetStatus(Target("m")), GetMetadata(Target("m"))]),
    status=st.sampled_from([200, 400, 429, 500, 503, 302, 418, 599]),
    body=st.one_of(
        st.binary(),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "outputs",
                            "error",
                            "model_version_status",
                            "model_spec",
                            "version",
                            "state",
                            "status",
                            "embedding",
                        ]
                    ),
                    inner,
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
    retry_after=st.text(),
)
def test_whatever_a_server_answers_nothing_but_client_errors_come_of_it(
    request: Request, status: int, body: bytes, retry_after: str
) -> None:
    with contextlib.suppress(ClientError):
        read_answer(request, status, {"retry-after": retry_after}, body)


def test_one_output_may_come_with_or_without_its_name() -> None:
    for body in (VECTOR, b'{"outputs": {"embedding": [[1.0, 2.0]]}}'):
        np.testing.assert_array_equal(read_answer(EMBED, 200, {}, body)["embedding"], [[1, 2]])


@pytest.mark.parametrize(
    ("status", "expected"),
    [(502, Unavailable), (404, ClientError), (413, InvalidRequest), (418, InvalidRequest)],
)
def test_a_proxys_page_is_an_error_with_its_text(status: int, expected: type[ClientError]) -> None:
    with pytest.raises(expected, match="<h1>Bad Gateway</h1>"):
        read_answer(EMBED, status, {}, b"<h1>Bad Gateway</h1>")


def test_a_server_may_say_when_to_come_back() -> None:
    with pytest.raises(Overloaded) as caught:
        read_answer(EMBED, 429, {"retry-after": "3"}, b'{"error": "full"}')
    assert caught.value.retry_after == 3.0


def test_a_status_with_an_unknown_code_is_read() -> None:
    body = {
        "model_version_status": [
            {
                "version": "3",
                "state": "END",
                "status": {"error_code": "NEW", "error_message": "x"},
            }
        ]
    }
    answer = read_answer(GetStatus(Target("m")), 200, {}, json.dumps(body).encode())
    assert answer == [(3, "END", Code.UNKNOWN, "x")]


@pytest.mark.parametrize("entry", ["x", [], {"version": "3", "state": "END", "status": []}])
def test_a_status_of_another_form_is_the_servers_fault(entry: object) -> None:
    body = json.dumps({"model_version_status": [entry]}).encode()
    with pytest.raises(ServerError, match="not one of TF Serving's"):
        read_answer(GetStatus(Target("m")), 200, {}, body)


def test_a_body_that_drips_is_given_up_at_the_deadline() -> None:
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while not over.wait(0.02):
            connection.sendall(b" ")

    with raw_server(drip) as url, Client(url) as client:
        with pytest.raises(DeadlineExceeded):
            client.embed(b"a", timeout=0.3)
        over.set()


def test_a_connection_cut_within_an_answer_is_tried_again() -> None:
    answers = [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", response(VECTOR)]

    def answer(connection: socket.socket) -> None:
        connection.sendall(answers.pop(0))

    with raw_server(answer) as url, Client(url, retries=Retries(first_pause=0.001)) as client:
        np.testing.assert_array_equal(client.embed(b"a"), [[1, 2]])
    assert answers == []


def test_what_is_no_http_is_unavailable() -> None:
    with (
        raw_server(lambda connection: connection.sendall(b"SSH-2.0-x\r\n")) as url,
        Client(url, retries=ONCE) as client,
        pytest.raises(Unavailable),
    ):
        client.embed(b"a")


def test_a_redirect_is_not_followed_with_the_images() -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url)
        return httpx.Response(302, headers={"location": "http://elsewhere/"})

    with (
        Client(transport=httpx.MockTransport(handler)) as client,
        pytest.raises(ServerError, match="302"),
    ):
        client.embed(b"a")
    assert len(seen) == 1


def test_a_server_behind_a_path_is_reached() -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return httpx.Response(200, content=VECTOR)

    with Client("https://host/ml", transport=httpx.MockTransport(handler)) as client:
        client.embed(b"a")
    assert seen == ["/ml/v1/models/siamese:predict"]


@pytest.mark.parametrize("url", ["127.0.0.1:8501", "ftp://host", "http://", ""])
@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_what_is_no_url_of_a_server_is_refused_at_once(cls: type, url: str) -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        cls(url)


def test_a_token_over_plain_http_is_warned_of_unless_it_stays_on_the_machine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        Client("http://127.0.0.1:8501", token="x").close()
        Client("https://server:8501", token="x").close()
        assert not caplog.records
        Client("http://server:8501", token="x").close()
    assert "unencrypted" in caplog.text
    assert "'x'" not in caplog.text


def test_a_proxy_is_not_asked_for_ones_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    with (
        raw_server(lambda connection: connection.sendall(response(VECTOR))) as url,
        Client(url, retries=ONCE) as client,
    ):
        assert client.embed(b"a").shape == (1, 2)


def test_tls_is_spoken_and_the_certificate_checked(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    with raw_server(lambda connection: connection.sendall(response(VECTOR)), tls=context) as url:
        with Client(url, tls=Tls(ca=certificate)) as client:
            assert client.embed(b"a").shape == (1, 2)
        with Client(url, retries=ONCE) as client, pytest.raises(Unavailable, match="CERTIFICATE"):
            client.embed(b"a")


def test_certificates_that_would_not_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not https"):
        Client("http://127.0.0.1:8501", tls=Tls())
    with pytest.raises(ValueError, match="needs its key"):
        Tls(certificate=tmp_path / "client.crt")
