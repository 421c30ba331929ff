"""Identifies processes by host, number and start, and ends groups of them.

    python -m pipeline.runs.processes MARK

waits for the end of its stdin, and ends the processes that `none_left_behind` has marked.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data_ingest.durable import process_started

_MARK: Final = "ONESHOT_STARTED_BY"
_DEATH_SECONDS: Final = 30.0


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


@contextmanager
def none_left_behind() -> Iterator[None]:
    """Meanwhile, processes that this one starts end with it, were it by `kill -9`.

    They inherit a mark in the environment; a process that outlives this one looks for it.
    """
    mark = f"{os.getpid()}-{process_started(os.getpid())}"
    command = [sys.executable, "-m", "pipeline.runs.processes", mark]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        os.environ[_MARK] = mark
        try:
            yield
        finally:
            del os.environ[_MARK]


def _end_marked(mark: str) -> None:
    deadline = time.monotonic() + _DEATH_SECONDS
    while (left := list(_marked(mark))) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _marked(mark: str) -> Iterator[int]:
    for file in Path("/proc").glob("[0-9]*/environ"):
        # Gone, or another user's.
        with suppress(OSError):
            if f"{_MARK}={mark}".encode() in file.read_bytes().split(b"\0"):
                yield int(file.parent.name)


def _is_member(stat: Path, group: str) -> bool:
    """Whether a process, by its file in /proc, is of a group and has not ended."""
    try:
        text = stat.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # Behind the name in brackets: state, parent, group (proc(5)).
    state, _, its_group = text.rpartition(")")[2].split()[:3]
    return its_group == group and state not in "ZX"


if __name__ == "__main__":
    sys.stdin.read()
    _end_marked(sys.argv[1])
