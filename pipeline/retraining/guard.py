"""Starts the process that does a retraining's work, and ends it when it may work no longer.

    python -m pipeline.retraining.guard PARENT WORKER

It leads the process group of one try, in which the module WORKER does the job that comes on stdin.
It loads no TensorFlow, which could keep it from asking for the lease. When that is lost it ends the
group and says why; when the process PARENT has gone there is nobody to tell.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Final, NoReturn

from data_ingest.errors import InputError
from pipeline.retraining.job import AFTER_SIGNAL, Job
from pipeline.retraining.outcome import Outcome
from pipeline.runs.lease import LeaseLostError, Watch
from pipeline.runs.lease_store import LeaseStoreError
from pipeline.runs.metadata_store import parse_url
from pipeline.runs.status import ExitCode, Status

_log = logging.getLogger(__name__)
_LOOK_SECONDS: Final = 0.2


def main(parent: int, module: str) -> int:
    """Has one job done; the exit code of the worker, or `AFTER_SIGNAL` and what killed it."""
    worker = subprocess.Popen(
        [sys.executable, "-m", module, str(os.getpid())], stdin=subprocess.PIPE, encoding="utf-8"
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
    line = sys.stdin.readline()
    if not line:
        _end_group()
    job = Job.model_validate_json(line)
    ending = threading.Event()

    def lost(reason: str) -> None:
        _log.critical("%s; ending at once", reason)
        ending.set()
        # Nothing that it says may come after the reason.
        worker.kill()
        worker.wait()
        outcome = Outcome(Status.INTERRUPTED, job.run.span, error=reason)
        os.write(1, f"\n{outcome.to_json()}\n".encode())
        _end_group()

    lease = parse_url(job.metadata_url).lease(ttl=job.config.retrain.lease_seconds)
    try:
        # The process that renews the lease may be stopped, as with Ctrl-Z, without having ended.
        Watch(ask=lambda: lease.check(job.token), ttl=lease.ttl, on_lost=lost).start()
    except (LeaseLostError, LeaseStoreError, InputError) as error:
        lost(str(error))
    assert worker.stdin is not None
    with suppress(BrokenPipeError), worker.stdin:
        worker.stdin.write(line)
    while True:
        with suppress(subprocess.TimeoutExpired):
            code = worker.wait(_LOOK_SECONDS)
            break
        if os.getppid() != parent:
            _end_group()
    if ending.is_set():
        threading.Event().wait()
    return code if code >= 0 else AFTER_SIGNAL - code


def _end_group() -> NoReturn:
    """Ends this process, too."""
    os.killpg(0, signal.SIGKILL)
    sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
