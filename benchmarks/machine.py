"""Says on which machine figures were taken, and how much memory a process has."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple


def machine(*packages: str) -> dict[str, str]:
    """Processor, memory and system of this machine, and the versions of some packages."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = re.findall(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE) or [platform.machine()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": f"{os.cpu_count()} x {names[0]}",
        "memory": f"{memory:.0f} GiB",
        "platform": platform.platform(),
        **{package: version(package) for package in packages},
    }


class Memory(NamedTuple):
    """Memory of a process in MiB: resident now, and the most it ever was."""

    resident: float
    most: float


def memory_of(process: int | str = "self") -> Memory:
    """Memory of a process, by its number."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
    return Memory(int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024)
