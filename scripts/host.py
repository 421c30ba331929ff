"""Checks the machine that the set-up runs on, and passes its settings on to uv."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

OLDEST_GLIBC = (2, 34)  # symbols of newer versions have stand-ins, those of older ones do not
NEEDED_BYTES = 5 * 2**30  # 3.3 GB of environment, and downloads on the same disk
GPU_BYTES = 8 * 2**30
# In a path: venv refuses the first, setuptools fails at braces, and scripts cannot name what is
# not printable or not UTF-8.
UNUSABLE = re.compile(r"[:{}\x00-\x1f\udc80-\udcff]")


class SetupError(Exception):
    """The environment cannot be made; the message says why and what to do."""


def glibc_version() -> tuple[int, ...]:
    """This host's glibc, e.g. (2, 36); empty where the C library is another one."""
    try:
        found = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        found = ""
    return tuple(int(number) for number in re.findall(r"\d+", found)[:2])


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def check_host(root: Path, *, gpu: bool) -> None:
    """Refuses hosts on which the set-up would fail later.

    Raises:
        SetupError: wrong platform, glibc too old, no compiler where one is needed, a path that no
            environment can be under, or too little disk space.
    """
    found = f"{platform.python_implementation()} on {platform.system()} {platform.machine()}"
    if found != "CPython on Linux x86_64":
        raise SetupError(
            "TFX's native parts are published for CPython on x86-64 Linux only; "
            f"this is {found}.\n"
            "Use an x86-64 Linux machine or container (Debian 12, Ubuntu 22.04 or 24.04)."
        )
    if glibc_version() < OLDEST_GLIBC:
        raise SetupError(
            f"TFX's native parts need glibc {dotted(OLDEST_GLIBC)} or later; "
            f"this host has {dotted(glibc_version()) or 'another C library'}.\n"
            "Use Debian 12, Ubuntu 22.04 or later."
        )
    if unusable := UNUSABLE.search(str(root)):
        raise SetupError(
            f"{str(root)!a}: Python makes no environment under a path with "
            f"{unusable[0]!a} in it.\n"
            "Rename the folder, or clone the project to another place, and run the command again."
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if sys.version_info[:2] == (3, 10) and not (shutil.which("g++") and header.exists()):
        raise SetupError(
            "On Python 3.10 one dependency (pyfarmhash) has to be compiled, and g++ or Python.h "
            "is missing.\nInstall Python 3.11 to 3.13, or `apt install g++ python3.10-dev`, "
            "and run the same command again."
        )
    needed = NEEDED_BYTES + GPU_BYTES * gpu
    free = shutil.disk_usage(root).free
    if free < needed:
        raise SetupError(
            f"The environment needs about {needed / 2**30:.0f} GiB, and {root} has "
            f"{free / 2**30:.1f} GiB free.\n"
            "Free some space, or clone the project to a larger disk, and run the command again."
        )


def uv_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The given environment with pip's settings passed on to uv.

    Settings that would install into another place than the environment are left out.
    """
    dropped = {"PIP_PREFIX", "PIP_TARGET", "PIP_USER", "PYTHONHOME", "PYTHONPATH"}
    dropped |= {"UV_PREFIX", "UV_SYSTEM_PYTHON", "UV_TARGET"}
    result = {name: value for name, value in environ.items() if name not in dropped}
    for pip_name, uv_name in {
        "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
        "PIP_EXTRA_INDEX_URL": "UV_INDEX",
        "PIP_NO_INDEX": "UV_NO_INDEX",
        "PIP_DEFAULT_TIMEOUT": "UV_HTTP_TIMEOUT",
        "PIP_TRUSTED_HOST": "UV_INSECURE_HOST",
        "PIP_CERT": "SSL_CERT_FILE",
    }.items():
        if pip_name in environ:
            result.setdefault(uv_name, environ[pip_name])
    places = environ.get("PIP_FIND_LINKS", "").split()
    places = [place for place in places if "://" in place or Path(place).exists()]
    if places:
        result.setdefault("UV_FIND_LINKS", ",".join(places))
    result.setdefault("UV_PYTHON_DOWNLOADS", "never")
    return result
