"""`oneshot run`, `runs` and `report`: a run of the pipeline, those so far, and their reports."""

import logging
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from data_ingest.errors import InputError
from pipeline.cli.shared import CONFIGURED, DATA, OUTPUT, Context, add_command, count, table
from pipeline.runs.live import loading_tfx
from pipeline.runs.logs import run_logging
from pipeline.runs.processes import none_left_behind, why_stopped
from pipeline.runs.status import ExitCode, Status
from pipeline.runs.workspace import Workspace, new_run_id

if TYPE_CHECKING:
    from pipeline.runs.history import RunRecord

_log = logging.getLogger(__name__)


def add_parsers(commands: Any) -> None:
    """Adds the group to the commands of `oneshot`."""
    add_command(
        commands,
        "run",
        _run,
        OUTPUT,
        CONFIGURED,
        DATA,
        text="train on images, judge the model, and push it if it is good",
    )
    runs = add_command(
        commands,
        "runs",
        _runs,
        OUTPUT,
        CONFIGURED,
        text="list the runs: data, accuracy, what became of the model",
    )
    runs.add_argument(
        "--limit",
        type=count,
        default=20,
        help="how many of the newest to show (default: %(default)s)",
    )
    report = add_command(
        commands,
        "report",
        _report,
        OUTPUT,
        CONFIGURED,
        text="write (again) the report of a run, and the index of all",
    )
    report.add_argument("run_id", nargs="?", default="latest", help="run id (%(default)s)")
    report.add_argument(
        "--compare",
        metavar="RUN",
        help="id of the run to compare with (default: the one before it)",
    )


def _run(context: Context) -> ExitCode:
    """Turns images into a model that TF Serving can use: reads and pairs the images, trains, judges
    the model on classes that it never saw, and pushes it to <output>/serving_model if it is good
    enough and no worse than the one before it.

    Steps whose data and settings have not changed come from the cache. Interrupt it at any time:
    the same command goes on. Exit code 3: the model is not good enough, and was not pushed.
    """
    config, workspace, metadata = context.config, context.workspace, context.metadata
    # A wrong path or an unreadable archive is told before TensorFlow loads.
    from data_ingest.sources.dataset import refuse_wildcards
    from data_ingest.sources.resolve import resolve

    # TFX would read the artifacts of every folder that matches.
    refuse_wildcards(workspace.root, named_by="--output")
    run_id = new_run_id()
    run_dir = workspace.run_dir(run_id)
    log_file = run_dir / "run.log"
    with context.lease().held(run_id=run_id, command="run") as hold:
        with context.progress():
            dataset = resolve(
                config.dataset,
                data=context.options.data,
                environ=os.environ,
                synthetic_dir=workspace.synthetic_data,
            )
        with run_logging(log_file, verbose=context.options.verbose, secrets=metadata.secrets):
            _log.info("Data     %s", dataset.description)
            _log.info("Log      %s", log_file)
            try:
                with loading_tfx():
                    import pipeline.runners.local  # noqa: F401
                    from pipeline.retraining.worker import run_followed
                    from pipeline.runs.history import RunRecord

                run = RunRecord(run_id=run_id, state=Status.RUNNING, started=time.time())
                with none_left_behind():
                    run_followed(config, dataset, workspace, metadata, run, hold.check)
            except Exception as error:
                logging.getLogger("oneshot").exception("the run failed")
                # Python 3.10 has no add_note.
                error.__notes__ = [f"Log: {log_file}"]
                raise
            except BaseException as stopped:
                _log.warning("The run was %s", why_stopped(stopped))
                raise
    from pipeline.runs.summary import SUMMARY_FILE, print_summary, read_summary

    summary = read_summary(run_dir)
    # With --json stdout carries nothing but the summary.
    console = Console(stderr=context.options.json, highlight=False)
    print_summary(summary, console, workspace=workspace)
    if context.options.json:
        print((run_dir / SUMMARY_FILE).read_text(encoding="utf-8"), end="")
    return ExitCode.DONE if summary.blessed else ExitCode.NOT_BLESSED


def _runs(context: Context) -> None:
    with context.quiet_libraries():
        records = context.history().runs()[: context.options.limit]
    headings = ("run", "data", "state", "accuracy", "blessed", "pushed", "time")
    context.show(
        [asdict(record) for record in records],
        table(headings, map(_row, records), right=("accuracy", "time")),
    )


def _row(record: "RunRecord") -> tuple[str, ...]:
    return (
        record.run_id,
        record.dataset if record.span is None else f"span {record.span}",
        record.state if record.stage == "push" else f"{record.state} ({record.stage})",
        "" if record.accuracy is None else f"{100 * record.accuracy:.1f} %",
        "" if record.blessed is None else ("yes" if record.blessed else "no"),
        str(record.pushed_version or ""),
        "" if record.seconds is None else f"{record.seconds:.0f} s",
    )


def _report(context: Context) -> None:
    workspace, options = context.workspace, context.options
    run_id = _judged(workspace, options.run_id)
    compare = None if options.compare is None else _judged(workspace, options.compare)
    with context.quiet_libraries():
        from pipeline.reports.index import report_on

        report, index = report_on(workspace, run_id, context.history(), compare=compare)
    context.show({"report": str(report), "index": str(index)}, f"{report}\n{index}")


def _judged(workspace: Workspace, run_id: str) -> str:
    """The id of a run that has a summary; `latest` is the last one's."""
    run_dir = workspace.run_dir(run_id).resolve()
    if not (run_dir / "summary.json").is_file():
        raise InputError(
            f"{run_dir}: no summary.json here; `oneshot runs` lists the runs, and only a "
            "finished one has a report"
        )
    return run_dir.name
