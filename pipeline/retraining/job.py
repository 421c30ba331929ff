"""Runs a retraining in a process of its own: what it is given, and what comes back."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pydantic

from data_ingest.sources.dataset import Dataset
from pipeline.config import PipelineConfig
from pipeline.retraining.outcome import Outcome
from pipeline.runs.history import RunRecord
from pipeline.runs.lease import LeaseLostError
from pipeline.runs.processes import Process, end
from pipeline.runs.status import Status

AFTER_SIGNAL: Final = 128
"""A greater exit code says which signal ended a process, as shells have it."""
_LOOK_SECONDS: Final = 0.2
_GRACE_SECONDS: Final = 8.0
"""In which a training that is to stop writes a checkpoint; `docker stop` leaves 10 to all of it."""
_DEATH_SECONDS: Final = 30.0


class Job(pydantic.BaseModel, frozen=True, hide_input_in_errors=True):
    """One try of a retraining."""

    config: PipelineConfig
    dataset: Dataset
    output: Path
    metadata_url: str = pydantic.Field(repr=False)
    """With its password: it is handed over through a pipe, and neither logged nor listed."""
    run: RunRecord
    token: int
    """Of the lease under which the job is done."""
    check_drift: bool
    """Whether the span is first compared with those before it."""
    verbose: bool

    def to_json(self) -> str:
        """One line, without the settings that hold secrets, which the work does not need."""
        return self.model_dump_json(exclude={"config": {"metadata", "notify"}})


class Child:
    """One process at a time; `end` may be called from any thread at any time."""

    def __init__(self, module: str = "pipeline.retraining.worker") -> None:
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
    ) -> Outcome:
        """Does a job in a process of its own, and waits for its end.

        Args:
          job: what is to be done.
          log_file: where what the process says goes if `quiet`; else to this one's stderr.
          quiet: nobody looks on.
          on_start: called with the process's number before it begins to work.
          check: called several times a second. What it raises ends the process, and so does what a
            signal raises: with some time for a checkpoint, unless it is a LeaseLostError.
        """
        log_file.parent.mkdir(parents=True, exist_ok=True)
        guard = [sys.executable, "-m", "pipeline.retraining.guard"]
        command = [*guard, str(Process.this().pid), self._module]
        with log_file.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log if quiet else None,
                encoding="utf-8",
                env={**os.environ, "PYTHONIOENCODING": "utf-8"},
                start_new_session=True,
            )
        self._leader = Process.local(process.pid)
        with process:
            try:
                on_start(process.pid)
                check()
                said = _communicate(process, job.to_json() + "\n", check)
            except LeaseLostError:
                raise
            except BaseException:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE_SECONDS)
                raise
            finally:
                # Nothing that it started may outlive it: the next try would meet it at work.
                self.end()
        return _outcome(said, process.returncode)

    def end(self) -> None:
        """Kills the process and its children, and waits until they are gone.

        Raises:
          RuntimeError: they do not go.
        """
        leader = self._leader
        if leader is not None and not end(leader, group=True, seconds=_DEATH_SECONDS):
            raise RuntimeError(f"process {leader.pid} cannot be killed; it hangs in the kernel")


def _communicate(process: "subprocess.Popen[str]", line: str, check: Callable[[], None]) -> str:
    """Writes a line to the process's stdin and reads its stdout until it ends."""
    given: str | None = line
    while True:
        ended = process.poll() is not None
        try:
            return process.communicate(given, timeout=_LOOK_SECONDS)[0]
        except subprocess.TimeoutExpired as unfinished:
            if ended:
                # A child of the process holds the pipe open.
                written: bytes = unfinished.output or b""
                return written.decode()
            given = None
            check()


def _outcome(said: str, code: int) -> Outcome:
    """What the process said last; it failed where it ended without a word."""
    lines = said.splitlines()
    if lines:
        return Outcome.from_json(lines[-1])
    number = -code if code < 0 else code - AFTER_SIGNAL
    if number in signal.valid_signals():
        how = f"was ended by {signal.Signals(number).name}"
    else:
        how = f"ended with exit code {code}"
    hint = "; out of memory?" if number == signal.SIGKILL else ""
    return Outcome(Status.FAILED, error=f"the training process {how}{hint}")
