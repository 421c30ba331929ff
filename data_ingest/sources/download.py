"""Downloads the official Omniglot archives: once, resuming where it stopped, and checked."""

import hashlib
import logging
import threading
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urljoin

import httpx

from data_ingest.durable import locked, rename_durably, synchronize
from data_ingest.errors import InputError, naming
from data_ingest.progress import step
from data_ingest.sources.layout import list_images

_CHUNK: Final = 2**16
_ATTEMPTS: Final = 4
_MAX_BYTES: Final = 2**27
"""Ten times the largest of the archives."""
_log = logging.getLogger(__name__)


class DownloadError(InputError):
    """An archive cannot be had: no network, a server's refusal, or wrong contents."""


class Archive(NamedTuple):
    """An official file."""

    name: str
    path: str
    """Where it is below the base address."""
    md5: str | None
    """None where no checksum is published; then the archive's own checksums must do."""
    holds: str
    """Part of a member's name without which this is another archive."""


OFFICIAL_ARCHIVES: Final = {
    name: Archive(f"{name}.zip", f"{folder}{name}.zip", md5, holds)
    for name, folder, md5, holds in (
        ("images_background", "", "68d2efa1b9178cc56df9314c21c6e718", "/character01/"),
        ("images_evaluation", "", "6b91aef0f799c5bb55b94e3f2daec811", "/character01/"),
        ("images_background_small1", "", None, "/character01/"),
        ("images_background_small2", "", None, "/character01/"),
        ("all_runs", "one-shot-classification/", None, "run01/class_labels.txt"),
    )
}
"""By name without suffix."""


def download(
    archives: Sequence[Archive],
    directory: Path,
    *,
    base_url: str,
    connect_timeout: float,
    read_timeout: float,
    pause: float = 1.0,
) -> None:
    """Fetches archives into a directory, where each appears complete and checked, or not at all.

    What an interrupted download has fetched stays as `<name>.part` and is continued. Safe to call
    from several processes at once.

    Args:
      archives: what to fetch.
      directory: where to; made if need be.
      base_url: address that the archives' paths are relative to.
      connect_timeout: seconds until the network is given up, name lookup included.
      read_timeout: seconds without a byte after which a connection is given up.
      pause: seconds before the second attempt, doubled before each further one.

    Raises:
      DownloadError: the server cannot be reached, refuses, or sends something else.
      OSError: the directory cannot be written, or its disk is full.
    """
    base_url = base_url.rstrip("/") + "/"
    timeout = httpx.Timeout(read_timeout, connect=connect_timeout)
    try:
        client = httpx.Client(timeout=timeout, follow_redirects=True)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise DownloadError(
            f"the proxy settings of the environment do not work: {error}"
        ) from error
    with client:
        _require_network(client, urljoin(base_url, archives[0].path), seconds=connect_timeout)
        directory.mkdir(parents=True, exist_ok=True)
        for archive in archives:
            with locked(directory / f".{archive.name}.lock"):
                if not zipfile.is_zipfile(directory / archive.name):
                    url = urljoin(base_url, archive.path)
                    _fetch_checked(client, archive, url, directory, pause)


def _require_network(client: httpx.Client, url: str, *, seconds: float) -> None:
    """Fails within `seconds` where the server cannot be reached.

    A thread, because the name lookup of the operating system cannot be given a time limit.
    """
    failures: list[Exception] = []

    def ask() -> None:
        try:
            client.head(url, timeout=seconds)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError) as error:
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="network-check")
    thread.start()
    thread.join(seconds + 0.5)
    if thread.is_alive():
        raise DownloadError(f"no answer from {url} within {seconds:g} s: is there a network?")
    if failures:
        raise DownloadError(f"{url} cannot be reached ({failures[0]}): is there a network?")


def _fetch_checked(
    client: httpx.Client, archive: Archive, url: str, directory: Path, pause: float
) -> None:
    part = directory / f"{archive.name}.part"
    resumed = part.exists() and part.stat().st_size > 0
    # A part that was there may come from a version of the file that the server no longer has.
    for _ in range(2 if resumed else 1):
        _fetch(client, url, part, pause=pause)
        problem = _problem_with(part, archive)
        if problem is None:
            synchronize(part)
            rename_durably(part, directory / archive.name)
            _log.info("Downloaded %s", directory / archive.name)
            return
        part.unlink()
    raise DownloadError(
        f"{url} is not what was expected: {problem}. Nothing was kept; try again later, or "
        f"put the official {archive.name} into a folder and name it with --data"
    )


def _fetch(client: httpx.Client, url: str, part: Path, *, pause: float) -> None:
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            if _continue_part(client, url, part):
                return
            problem = "the connection ended early"
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            problem = f"the server answered {status} {error.response.reason_phrase}"
            if status < 500 and status not in (408, 429):
                raise DownloadError(f"{url} cannot be downloaded: {problem}") from error
        except httpx.HTTPError as error:
            problem = str(error) or type(error).__name__
        _log.debug("%s: attempt %d: %s", url, attempt + 1, problem)
    raise DownloadError(
        f"{url} cannot be downloaded: {problem}, after {_ATTEMPTS} attempts; "
        "the same command continues where this one stopped"
    )


def _continue_part(client: httpx.Client, url: str, part: Path) -> bool:
    """Appends what is missing to the part; returns whether it then has the announced size."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with client.stream("GET", url, headers=headers) as response:
        content_range = response.headers.get("Content-Range", "")
        announced = content_range.rpartition("/")[2]
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            if announced == str(have):
                return True
            part.unlink()
            return False
        response.raise_for_status()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            have, announced = 0, response.headers.get("Content-Length", "")
        elif not content_range.startswith(f"bytes {have}-"):
            part.unlink()
            return False
        total = int(announced) if announced.isdigit() else None
        with (
            naming(part),
            part.open("ab" if have else "wb") as stream,
            step(f"Downloading {part.name.removesuffix('.part')}", total, done=have) as one,
        ):
            # No chunk size: httpx would hold back, and on a lost connection drop, the last bytes.
            for chunk in response.iter_raw():
                have += len(chunk)
                if have > _MAX_BYTES:
                    raise DownloadError(
                        f"{url} sends more than {_MAX_BYTES:,} bytes, ten times what Omniglot has: "
                        "see that dataset.download_url is right"
                    )
                stream.write(chunk)
                one.advance(len(chunk))
    return total is None or part.stat().st_size == total


def _problem_with(part: Path, archive: Archive) -> str | None:
    if archive.md5 is not None:
        digest = hashlib.md5(usedforsecurity=False)
        with part.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != archive.md5:
            return f"its md5 is {digest.hexdigest()}, not {archive.md5}"
    try:
        with zipfile.ZipFile(part) as opened:
            list_images(part)  # before testzip, as it refuses what would unpack without end
            damaged = opened.testzip()
            if damaged is not None:
                return f"{damaged} inside it is damaged"
            if not any(archive.holds in name for name in opened.namelist()):
                return f"nothing inside it is named {archive.holds}"
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        return f"it is not a sound zip archive ({error})"
    except InputError as error:
        return str(error)
    return None
