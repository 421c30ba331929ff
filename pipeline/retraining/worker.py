"""Works off one job of a retraining: reads it from stdin, writes its outcome to stdout.

    python -m pipeline.retraining.worker GUARD

It ends when the process that started it, whose number is GUARD, does.
"""

import atexit
import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

from ml_metadata import MetadataStore

from data_ingest.errors import InputError
from data_ingest.progress import step
from data_ingest.sources.dataset import Dataset
from pipeline.config import PipelineConfig
from pipeline.releases.promotion import Promotions
from pipeline.retraining.job import Job
from pipeline.retraining.outcome import Outcome
from pipeline.runs.history import RunRecord
from pipeline.runs.live import loading_tfx
from pipeline.runs.logs import run_logging
from pipeline.runs.metadata_store import MetadataLocation, parse_url
from pipeline.runs.processes import SignalledError
from pipeline.runs.status import ExitCode, Status
from pipeline.runs.workspace import Workspace

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main(do: Callable[[Job], Outcome]) -> int:
    """Does one job, by `do`."""
    _end_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGTERM, _stop)
    # What TensorFlow and TFX leave is not looked through for garbage: that takes seconds.
    atexit.register(gc.freeze)
    line = sys.stdin.readline()
    if not line:
        return ExitCode.FAILED
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    job = Job.model_validate_json(line)
    outcome = do(job)
    sys.stdout.write(outcome.to_json() + "\n")
    sys.stdout.flush()
    return outcome.status.exit_code


def _run(job: Job) -> Outcome:
    workspace = Workspace(job.output, job.config.push.model_name)
    metadata = parse_url(job.metadata_url)
    lease = metadata.lease()
    run, span = job.run, job.run.span
    log_file = workspace.run_dir(run.run_id) / "run.log"
    with run_logging(log_file, verbose=job.verbose, secrets=metadata.secrets):
        _log.info("Data     %s", job.dataset.description)
        _log.info("Log      %s", log_file)
        try:
            with loading_tfx():
                import pipeline.runners.local  # noqa: F401
                from pipeline.retraining.drift import check_drift

            if job.check_drift:
                assert span is not None
                report = check_drift(job.config, workspace, span)
                run = replace(run, drift=str(report))
                if report.findings:
                    _log.warning("Drift    %s", report)
                if report.blocked:
                    error = (
                        f"span {span} drifted and is excluded from training; after a look at it, "
                        f"`oneshot spans readmit {span}` takes that back"
                    )
                    return Outcome(Status.BLOCKED, span, run, error)
                wanted = job.config.retrain.trigger
                if wanted == "drift" and report.reference and not report.findings:
                    return Outcome(Status.SKIPPED, span, run)
            run = run_followed(
                job.config, job.dataset, workspace, metadata, run, lambda: lease.check(job.token)
            )
        except InputError as error:
            logging.getLogger("oneshot").exception("the run was refused")
            return Outcome(Status.REFUSED, span, error=str(error))
        except Exception as error:
            logging.getLogger("oneshot").exception("the run failed")
            return Outcome(Status.FAILED, span, error=f"{error}\nLog: {log_file}")
    return Outcome(Status.DONE, span, run)


def run_followed(
    config: PipelineConfig,
    dataset: Dataset,
    workspace: Workspace,
    metadata: MetadataLocation,
    run: RunRecord,
    check_lease: Callable[[], object],
) -> RunRecord:
    """Runs the pipeline, has servers load what it pushes, and writes the report of a judged run.

    Arguments, result and errors are those of `pipeline.runners.local.run_pipeline`.
    """
    from pipeline.reports.index import try_to_report_on
    from pipeline.runners.local import run_pipeline
    from pipeline.runs.history import RunHistory

    store = MetadataStore(metadata.connection())
    with Promotions(workspace, store, settings=config.push).followed():
        run = run_pipeline(
            config=config,
            dataset=dataset,
            workspace=workspace,
            metadata=metadata,
            run=run,
            check_lease=check_lease,
        )
    if run.is_judged:
        with step("Writing the report"):
            try_to_report_on(workspace, run.run_id, RunHistory(metadata.connection()))
    return run


def _stop(number: int, _frame: object) -> None:
    """Ends the work in order, once: the signal comes from a service manager and from the guard."""
    signal.signal(number, signal.SIG_IGN)
    raise SignalledError(number)


def _end_with_parent(parent: int) -> None:
    """Without the process that watches the lease nothing may be written any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this has gone")


if __name__ == "__main__":
    sys.exit(main(_run))
