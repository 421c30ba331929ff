"""The process in which a retraining runs: reads its job from stdin, writes its result to stdout.

    python -m pipeline.retrain_worker PARENT

It leads a process group of its own, and ends when the process that started it, whose number is
PARENT, does.
"""

import ctypes
import logging
import os
import signal
import sys

from data_ingest.errors import InputError
from pipeline.logs import run_logging
from pipeline.metadata_store import parse_url
from pipeline.retrain_job import Job, Result
from pipeline.workspace import Workspace

_LOGGER = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> int:
    """Does one job."""
    _end_with_parent(int(sys.argv[1]))
    line = sys.stdin.readline()
    if not line:
        return 1
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    result = _do(Job.from_json(line))
    sys.stdout.write(result.to_json() + "\n")
    sys.stdout.flush()
    return 0 if result.state == "done" else 1


def _do(job: Job) -> Result:
    workspace = Workspace(job.output, job.config.push.model_name)
    metadata = parse_url(job.metadata_url)
    lease = metadata.lease()
    log_file = workspace.run_dir(job.run.run_id) / "run.log"
    with run_logging(log_file, verbose=job.verbose, secrets=metadata.secrets):
        _LOGGER.info("Data     %s", job.dataset.description)
        _LOGGER.info("Log      %s", log_file)
        _LOGGER.info("Loading  TensorFlow and TFX")
        try:
            from pipeline.local import run_pipeline
            from pipeline.report import try_to_write_report

            run = run_pipeline(
                config=job.config,
                dataset=job.dataset,
                workspace=workspace,
                metadata=metadata,
                run=job.run,
                check_lease=lambda: lease.check(job.token),
            )
            if run.is_judged:
                try_to_write_report(workspace.run_dir(run.run_id))
        except InputError as error:
            logging.getLogger("oneshot").exception("the run was refused")
            return Result("refused", error=str(error))
        except Exception as error:
            logging.getLogger("oneshot").exception("the run failed")
            return Result("failed", error=f"{error}\nLog: {log_file}")
    return Result("done", run=run)


def _end_with_parent(parent: int) -> None:
    """Without the process that renews the lease nothing may be written any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this has gone")


if __name__ == "__main__":
    sys.exit(main())
