"""Identifies processes by host, number and start, and ends groups of them."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_ingest.durable import process_started


@dataclass(frozen=True)
class Process:
    """A process somewhere; `started` tells it from a later one of the same number."""

    host: str
    pid: int
    started: str

    @staticmethod
    def this() -> "Process":
        return Process.local(os.getpid())

    @staticmethod
    def local(pid: int) -> "Process":
        return Process(this_host(), pid, process_started(pid))

    def is_here(self) -> bool:
        """Whether its number means anything to this process."""
        return self.host == this_host()

    def is_alive(self) -> bool:
        """Only for one that is here."""
        return self.started != "0" and process_started(self.pid) == self.started

    def group_is_alive(self) -> bool:
        """Whether any process of the group that it led is left; only for one that is here."""
        # While a group has members no other process gets its number.
        reused = process_started(self.pid) not in ("0", self.started)
        return not reused and any(True for _ in _members(self.pid))


def this_host() -> str:
    """Host, boot and process namespace: where equal, process numbers mean the same."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"


def end_group(leader: Process, *, seconds: float) -> bool:
    """Ends a group of processes on this host with SIGKILL; whether all have gone in time.

    Raises:
      PermissionError: they are another user's.
    """
    deadline = time.monotonic() + seconds
    while leader.group_is_alive():
        try:
            os.killpg(leader.pid, signal.SIGKILL)
        except ProcessLookupError:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _members(group: int) -> Iterator[int]:
    """Numbers of the processes of a group, without those that have ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        # Behind the name in brackets: state, parent, group (proc(5)).
        state, _, its_group = text.rpartition(")")[2].split()[:3]
        if its_group == str(group) and state not in "ZX":
            yield int(stat.parent.name)
