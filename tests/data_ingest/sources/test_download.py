import hashlib
import io
import resource
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data_ingest.sources.download import OFFICIAL_ARCHIVES, Archive, DownloadError, download
from data_ingest.sources.glyphs import encode_png


def archive_bytes(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(stream, "w") as opened:
        for i in range(40):
            data = encode_png(rng.random((64, 64)) < 0.5)
            opened.writestr(f"set/A{i % 2}/character01/0001_{i // 2 + 1:02}.png", data)
    return stream.getvalue()


class Server(ThreadingHTTPServer):
    """Serves bytes from memory, with ranges, and misbehaves as told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut_after: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/python"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        data = self.server.files.get(self.path.removeprefix("/python/"))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if data is None or status != 200:
            self.send_response(status if data is not None else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(wanted[len("bytes=") : -1]) if wanted and self.server.ranges else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = self.server.cut_after.pop(0) if self.server.cut_after else None
        self.wfile.write(data[start:][:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def archive(data: bytes, *, md5: bool = True) -> Archive:
    digest = hashlib.md5(data).hexdigest() if md5 else None
    return Archive(name="set.zip", path="sub/set.zip", md5=digest, holds="/character01/")


def fetch(server: Server, wanted: Archive, directory: Path) -> None:
    download(
        [wanted], directory, base_url=server.url, connect_timeout=2, read_timeout=5, pause=0.01
    )


def kept(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".lock"))


def test_an_archive_arrives_whole_and_under_its_own_name(server: Server, tmp_path: Path) -> None:
    data = server.files["sub/set.zip"] = archive_bytes()
    fetch(server, archive(data), tmp_path / "cache" / "omniglot")
    assert (tmp_path / "cache/omniglot/set.zip").read_bytes() == data
    assert kept(tmp_path / "cache/omniglot") == ["set.zip"]


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    data = server.files["sub/set.zip"] = archive_bytes()
    for _ in range(2):
        fetch(server, archive(data), tmp_path)
    assert len(server.requests) == 1


def test_a_lost_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    data = server.files["sub/set.zip"] = archive_bytes()
    server.cut_after = [5000, 3000]
    fetch(server, archive(data), tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == data
    assert [wanted for _, wanted in server.requests] == [None, "bytes=5000-", "bytes=8000-"]


def test_a_killed_download_is_continued_by_the_next(server: Server, tmp_path: Path) -> None:
    data = server.files["sub/set.zip"] = archive_bytes()
    (tmp_path / "set.zip.part").write_bytes(data[:4000])
    fetch(server, archive(data), tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == data
    assert server.requests == [("/python/sub/set.zip", "bytes=4000-")]


def test_a_part_that_was_complete_before_the_kill_is_taken(server: Server, tmp_path: Path) -> None:
    data = server.files["sub/set.zip"] = archive_bytes()
    (tmp_path / "set.zip.part").write_bytes(data)
    fetch(server, archive(data), tmp_path)
    assert kept(tmp_path) == ["set.zip"]


def test_a_server_without_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    data = server.files["sub/set.zip"] = archive_bytes()
    server.ranges = False
    (tmp_path / "set.zip.part").write_bytes(data[:4000])
    fetch(server, archive(data), tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == data


@pytest.mark.parametrize("stale", [b"other bytes" * 100, archive_bytes(1) * 2])
def test_a_part_of_another_file_is_thrown_away(
    server: Server, tmp_path: Path, stale: bytes
) -> None:
    data = server.files["sub/set.zip"] = archive_bytes()
    (tmp_path / "set.zip.part").write_bytes(stale)
    fetch(server, archive(data), tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == data


def test_a_wrong_md5_is_refused_and_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    server.files["sub/set.zip"] = archive_bytes(1)
    with pytest.raises(DownloadError, match=r"set\.zip.*md5 is .*, not "):
        fetch(server, archive(archive_bytes(0)), tmp_path)
    assert kept(tmp_path) == []


def damaged() -> bytes:
    data = bytearray(archive_bytes())
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def foreign() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        opened.writestr("a/b/1.png", b"")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"<html>log in first</html>", "not a sound zip archive"),
        (archive_bytes()[:-100], "not a sound zip archive"),
        (damaged(), "damaged|not a sound zip archive"),
        (foreign(), "nothing inside it is named /character01/"),
    ],
)
def test_without_a_known_md5_the_contents_are_checked(
    server: Server, tmp_path: Path, sent: bytes, message: str
) -> None:
    server.files["sub/set.zip"] = sent
    with pytest.raises(DownloadError, match=message):
        fetch(server, archive(b"", md5=False), tmp_path)
    assert kept(tmp_path) == []


def test_a_server_that_is_briefly_overloaded_is_asked_again(server: Server, tmp_path: Path) -> None:
    data = server.files["sub/set.zip"] = archive_bytes()
    server.statuses = [503, 429]
    fetch(server, archive(data), tmp_path)
    assert kept(tmp_path) == ["set.zip"]


def test_a_missing_file_fails_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="404"):
        fetch(server, archive(b"", md5=False), tmp_path)
    assert len(server.requests) == 1


def test_a_connection_that_keeps_breaking_ends_in_an_error_and_keeps_the_part(
    server: Server, tmp_path: Path
) -> None:
    data = server.files["sub/set.zip"] = archive_bytes()
    server.cut_after = [100] * 4
    with pytest.raises(DownloadError, match="continues where this one stopped"):
        fetch(server, archive(data), tmp_path)
    assert (tmp_path / "set.zip.part").read_bytes() == data[:400]


def test_two_downloads_at_once_do_not_disturb_each_other(server: Server, tmp_path: Path) -> None:
    data = server.files["sub/set.zip"] = archive_bytes()
    threads = [
        threading.Thread(target=fetch, args=(server, archive(data), tmp_path)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "set.zip").read_bytes() == data
    assert len(server.requests) == 1


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:1/", "http://nowhere.invalid/"])
def test_without_a_server_it_fails_quickly_and_makes_no_folder(
    tmp_path: Path, base_url: str
) -> None:
    started = time.monotonic()
    with pytest.raises(DownloadError, match="is there a network"):
        download(
            list(OFFICIAL_ARCHIVES.values()),
            tmp_path / "cache",
            base_url=base_url,
            connect_timeout=2,
            read_timeout=5,
        )
    assert time.monotonic() - started < 5
    assert not (tmp_path / "cache").exists()


def test_a_name_lookup_that_hangs_counts_as_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(*args: object, **options: object) -> list[object]:
        released.wait(30)
        raise OSError("released")

    monkeypatch.setattr("socket.getaddrinfo", hang)
    started = time.monotonic()
    try:
        with pytest.raises(DownloadError, match="no answer"):
            download(
                [archive(b"")],
                tmp_path,
                base_url="http://example.invalid/",
                connect_timeout=0.2,
                read_timeout=5,
            )
    finally:
        released.set()
    assert time.monotonic() - started < 5


def test_the_official_archives_have_the_published_checksums() -> None:
    archives = OFFICIAL_ARCHIVES
    assert archives["images_background"].md5 == "68d2efa1b9178cc56df9314c21c6e718"
    assert archives["images_evaluation"].md5 == "6b91aef0f799c5bb55b94e3f2daec811"
    assert archives["all_runs"].path == "one-shot-classification/all_runs.zip"


def test_a_disk_that_fills_up_is_named(server: Server, tmp_path: Path) -> None:
    data = server.files["sub/set.zip"] = archive_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match=r"set\.zip\.part"):
            fetch(server, archive(data), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_server_that_sends_without_end_is_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_ingest.sources.download._MAX_BYTES", 1000)
    server.files["sub/set.zip"] = archive_bytes()
    with pytest.raises(DownloadError, match=r"set\.zip sends more than 1,000 bytes.*download_url"):
        fetch(server, archive(server.files["sub/set.zip"]), tmp_path)
    assert not (tmp_path / "set.zip").exists()
