"""The child process of a retraining: started, watched, and ended with all that it started."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipeline.processes import Process, end_group
from pipeline.retrain_job import Job, Result

_LOOK_SECONDS: Final = 0.2
_DEATH_SECONDS: Final = 30.0


class Child:
    """One process at a time; `end` may be called from any thread at any time."""

    def __init__(self, module: str = "pipeline.retrain_worker") -> None:
        """Starts nothing yet; `module` does the work."""
        self._module = module
        self._leader: Process | None = None

    def run(
        self,
        job: Job,
        *,
        log_file: Path,
        quiet: bool,
        on_start: Callable[[int], None],
        check: Callable[[], None],
    ) -> Result:
        """Does a job in a process of its own, and waits for its end.

        Args:
          job: what is to be done.
          log_file: where what the process says goes if `quiet`; else to this one's stderr.
          quiet: nobody looks on.
          on_start: called with the process's number before it begins to work.
          check: called several times a second; what it raises ends the process.
        """
        log_file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", self._module, str(Process.this().pid)]
        with log_file.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log if quiet else None,
                text=True,
                start_new_session=True,
            )
        self._leader = Process.local(process.pid)
        with process:
            try:
                on_start(process.pid)
                check()
                said = _communicate(process, job.to_json() + "\n", check)
            finally:
                # Nothing that it started may outlive it: the next try would meet it at work.
                self.end()
        return _result(said, process.returncode)

    def end(self) -> None:
        """Kills the process and its children, and waits until they are gone.

        Raises:
          RuntimeError: they do not go.
        """
        leader = self._leader
        if leader is not None and not end_group(leader, seconds=_DEATH_SECONDS):
            raise RuntimeError(f"process {leader.pid} cannot be killed; it hangs in the kernel")


def _communicate(process: "subprocess.Popen[str]", line: str, check: Callable[[], None]) -> str:
    """Writes a line to the process's stdin and reads its stdout until it ends."""
    given: str | None = line
    while True:
        try:
            return process.communicate(given, timeout=_LOOK_SECONDS)[0]
        except subprocess.TimeoutExpired:
            given = None
            if process.poll() is not None:
                return _last_words(process)
            check()


def _last_words(process: "subprocess.Popen[str]") -> str:
    """What a process that has ended wrote to its stdout."""
    try:
        return process.communicate(timeout=_LOOK_SECONDS)[0]
    except subprocess.TimeoutExpired as unfinished:
        # A child of the process holds the pipe open.
        written: bytes = unfinished.output or b""
        return written.decode()


def _result(said: str, code: int) -> Result:
    lines = said.splitlines()
    if lines:
        return Result.from_json(lines[-1])
    if code >= 0:
        return Result("killed", error=f"the training process ended with exit code {code}")
    hint = "; out of memory?" if code == -9 else ""
    return Result("killed", error=f"the training process was killed by signal {-code}{hint}")
