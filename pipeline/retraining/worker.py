"""The process in which a retraining runs: reads its job from stdin, writes its result to stdout.

    python -m pipeline.retraining.worker PARENT

It leads a process group of its own, and ends when the process that started it, whose number is
PARENT, does.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ml_metadata import MetadataStore

from data_ingest.errors import InputError
from data_ingest.spans.store import SpanStore
from pipeline.releases.promotion import Promotions
from pipeline.retraining.job import Job, Result
from pipeline.runs.lease import Watch
from pipeline.runs.logs import run_logging
from pipeline.runs.metadata_store import parse_url
from pipeline.runs.workspace import Workspace
from serving.deploy.models_config import STABLE

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main(do: Callable[[Job], Result] | None = None) -> int:
    """Does one job, by `do` if given."""
    _end_with_parent(int(sys.argv[1]))
    line = sys.stdin.readline()
    if not line:
        return 1
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    job = Job.from_json(line)
    # The process that renews the lease may be stopped, as with Ctrl-Z, without having ended.
    lease = parse_url(job.metadata_url).lease()
    Watch(ask=lambda: lease.check(job.token), on_lost=_end_group).start()
    result = (do or _run)(job)
    sys.stdout.write(result.to_json() + "\n")
    sys.stdout.flush()
    return 0 if result.state == "done" else 1


def _run(job: Job) -> Result:
    workspace = Workspace(job.output, job.config.push.model_name)
    metadata = parse_url(job.metadata_url)
    lease = metadata.lease()
    log_file = workspace.run_dir(job.run.run_id) / "run.log"
    with run_logging(log_file, verbose=job.verbose, secrets=metadata.secrets):
        _log.info("Data     %s", job.dataset.description)
        _log.info("Log      %s", log_file)
        _log.info("Loading  TensorFlow and TFX")
        try:
            from pipeline.runners.local import run_pipeline
            from pipeline.runs.report import try_to_write_report

            run = job.run
            if job.check_drift:
                drift = _check_drift(job, workspace, run.span)
                if isinstance(drift, Result):
                    return drift
                run = replace(run, drift=drift)
            run = run_pipeline(
                config=job.config,
                dataset=job.dataset,
                workspace=workspace,
                metadata=metadata,
                run=run,
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


def _check_drift(job: Job, workspace: Workspace, span: int | None) -> str | Result:
    """What was found; a Result where it is a reason not to train."""
    from pipeline.retraining.drift import check_drift

    assert span is not None
    report = check_drift(
        SpanStore(workspace.spans),
        span,
        model=_served_model(job, workspace),
        settings=job.config.drift,
        reports=workspace.drift_reports,
    )
    found = "; ".join(
        f"{one.feature} {one.measure.replace('_', ' ')} {one.value:.3f} > {one.threshold:.3f}"
        for one in report.findings
    )
    if found:
        _log.warning("Drift    %s", found)
    if report.blocked:
        return Result(
            "blocked",
            error=f"span {span} drifted and is excluded from training; after a look at it, "
            f"`oneshot spans readmit {span}` takes that back",
            drift=found,
        )
    if job.config.retrain.trigger == "drift" and report.reference and not found:
        return Result("skipped")
    return found


def _served_model(job: Job, workspace: Workspace) -> Path | None:
    """The stable version, or the newest where none has that label; None where there is none."""
    store = MetadataStore(parse_url(job.metadata_url).connection())
    standing = Promotions(workspace, store, settings=job.config.push).standing()
    version = standing.labels.get(STABLE, max(standing.versions, default=None))
    return None if version is None else workspace.serving_model / str(version)


def _end_group(reason: str) -> None:
    _log.critical("%s; ending at once", reason)
    logging.shutdown()
    os.killpg(0, signal.SIGKILL)


def _end_with_parent(parent: int) -> None:
    """Without the process that renews the lease nothing may be written any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this has gone")


if __name__ == "__main__":
    sys.exit(main())
