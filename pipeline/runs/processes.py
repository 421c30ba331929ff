"""Identifies processes by host, number and start, and ends groups of them."""

import os
import signal
import socket
import time
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
        return not reused and any(
            _is_member(stat, str(self.pid)) for stat in Path("/proc").glob("[0-9]*/stat")
        )


def this_host() -> str:
    """Host, boot and process namespace: where equal, process numbers mean the same."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"


class SignalledError(SystemExit):
    """Ends the work in order, as Ctrl-C does, because a signal asked for it; tells which."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.exit_code = 128 + number
        self._name = signal.Signals(number).name

    def __str__(self) -> str:
        why = ": its terminal or session was closed" if self._name == "SIGHUP" else ""
        return f"ended by {self._name}{why}"


def why_stopped(error: BaseException) -> str:
    """What ended a work from outside, for people."""
    return str(error) or ("ended by Ctrl-C" if isinstance(error, KeyboardInterrupt) else "ended")


def end(process: Process, *, group: bool, seconds: float) -> bool:
    """Ends a process on this host, or the group that it led, by SIGKILL; whether in time.

    Raises:
      PermissionError: it is another user's.
    """
    kill = os.killpg if group else os.kill
    deadline = time.monotonic() + seconds
    while process.group_is_alive() if group else process.is_alive():
        try:
            kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _is_member(stat: Path, group: str) -> bool:
    """Whether a process, by its file in /proc, is of a group and has not ended."""
    try:
        text = stat.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # Behind the name in brackets: state, parent, group (proc(5)).
    state, _, its_group = text.rpartition(")")[2].split()[:3]
    return its_group == group and state not in "ZX"
