"""The command line: `oneshot` and its subcommands.

Exit codes: 0 done, 1 failed, 2 wrong usage, configuration or data, 3 finished but not blessed.
People's text goes to stderr where `--json` asks for machine-readable stdout.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from data_ingest.errors import InputError
from pipeline.cli.compile import add_parser as add_compile_parser
from pipeline.cli.evaluate import add_parser as add_evaluate_parser
from pipeline.cli.gallery import add_parser as add_gallery_parser
from pipeline.cli.releases import add_parser as add_gc_parser
from pipeline.cli.releases import add_parsers as add_promotion_parsers
from pipeline.cli.retrain import add_notify_parser
from pipeline.cli.retrain import add_parser as add_retrain_parser
from pipeline.cli.serve import add_parser as add_serve_parser
from pipeline.cli.spans import add_parser as add_drift_parser
from pipeline.cli.spans import add_parsers as add_span_parsers
from pipeline.config import load_config
from pipeline.runs.logs import console_logging, run_logging
from pipeline.runs.metadata_store import locate
from pipeline.runs.workspace import Workspace, new_run_id

_log = logging.getLogger(__name__)
EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_NOT_BLESSED = 0, 1, 2, 3
_DEFAULT_OUTPUT = Path("output")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    # TensorFlow reads these when it is imported, which the commands do only when they need it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    try:
        return int(arguments.command(arguments))
    except InputError as error:
        return _fail(error, EXIT_USAGE)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues from the last finished step", 130)
    except BrokenPipeError:
        # The reader of our stdout went away (`oneshot runs | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_DONE
    except (RuntimeError, OSError) as error:
        return _fail(error, EXIT_FAILED)


def _fail(error: Exception | str, code: int) -> int:
    notes = getattr(error, "__notes__", [])
    print("\n".join([f"oneshot: {error}", *notes]), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oneshot", description="Trains, proves and serves a one-shot recogniser."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="machine-readable result on stdout")
    common.add_argument("-v", "--verbose", action="store_true", help="show every library's log")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument(
        "--output",
        type=Path,
        default=_DEFAULT_OUTPUT,
        help="folder of all results (%(default)s)",
    )
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument(
        "--config",
        type=Path,
        help="YAML file (pipeline_config.yaml where there is one)",
    )
    configured.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override one key, e.g. train.steps=500; repeatable",
    )
    with_data = argparse.ArgumentParser(add_help=False, parents=[configured])
    with_data.add_argument(
        "--data", type=Path, help="folder or zip of images, <group>/<class>/<image>"
    )

    run = commands.add_parser(
        "run", parents=[common, output, with_data], help="images to a pushed model"
    )
    run.set_defaults(command=_run)

    add_evaluate_parser(commands, parents=[common])

    runs = commands.add_parser("runs", parents=[common, output, configured], help="history of runs")
    runs.add_argument("--limit", type=int, default=20, help="newest runs shown (%(default)s)")
    runs.set_defaults(command=_runs)

    report = commands.add_parser(
        "report", parents=[common, output], help="write (again) the report of a run"
    )
    report.add_argument("run_id", nargs="?", default="latest", help="run id (%(default)s)")
    report.set_defaults(command=_report)

    add_span_parsers(commands, parents=[common, output], configured=configured)
    add_drift_parser(commands, parents=[common, output, configured])
    add_retrain_parser(commands, parents=[common, output], configured=configured)
    add_notify_parser(commands, parents=[common], configured=configured)
    add_promotion_parsers(commands, parents=[common, output], configured=configured)
    add_gc_parser(commands, parents=[common, output], configured=configured)
    add_serve_parser(commands, parents=[common, output])
    add_gallery_parser(commands, parents=[common])

    add_compile_parser(commands, parents=[common, with_data])

    doctor = commands.add_parser(
        "doctor",
        parents=[common, output, with_data],
        help="what would stop a run here",
    )
    doctor.set_defaults(command=_doctor)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    workspace = Workspace(arguments.output.absolute(), config.push.model_name)
    # Light modules first: a wrong path or an unreadable archive is told before TensorFlow loads.
    from data_ingest.sources.resolve import resolve

    run_id = new_run_id()
    log_file = workspace.run_dir(run_id) / "run.log"
    metadata = locate(config.metadata, workspace)
    lease = metadata.lease(ttl=config.retrain.lease_seconds)
    with lease.held(run_id=run_id, command="run") as hold:
        with console_logging(sys.stderr):
            dataset = resolve(
                config.dataset,
                data=arguments.data,
                environ=os.environ,
                synthetic_dir=workspace.synthetic_data,
            )
        with run_logging(log_file, verbose=arguments.verbose, secrets=metadata.secrets):
            _log.info("Data     %s", dataset.description)
            _log.info("Log      %s", log_file)
            _log.info("Loading  TensorFlow and TFX")
            try:
                from pipeline.runners.local import run_pipeline
                from pipeline.runs.history import RunRecord

                run_pipeline(
                    config=config,
                    dataset=dataset,
                    workspace=workspace,
                    metadata=metadata,
                    run=RunRecord(run_id=run_id, state="running", started=time.time()),
                    check_lease=hold.check,
                )
            except Exception as error:
                logging.getLogger("oneshot").exception("the run failed")
                error.add_note(f"Log: {log_file}")
                raise
            from pipeline.runs.report import try_to_write_report

            try_to_write_report(workspace.run_dir(run_id))
    from pipeline.runs.summary import print_summary, read_summary

    summary = read_summary(workspace.run_dir(run_id))
    # With --json stdout carries nothing but the summary.
    console = Console(stderr=arguments.json, highlight=False)
    print_summary(summary, console, workspace=workspace)
    if arguments.json:
        print(
            (workspace.run_dir(run_id) / "summary.json").read_text(encoding="utf-8"),
            end="",
        )
    return EXIT_DONE if summary.blessed else EXIT_NOT_BLESSED


def _runs(arguments: argparse.Namespace) -> int:
    workspace = Workspace(arguments.output.absolute())
    metadata = locate(load_config(arguments.config, arguments.overrides).metadata, workspace)
    if metadata.sqlite_file is not None and not metadata.sqlite_file.is_file():
        raise InputError(
            f"{arguments.output}: no runs here yet (no {metadata.sqlite_file.name}); see --output"
        )
    with _quiet_libraries(arguments):
        from pipeline.runs.history import RunHistory

        records = RunHistory(metadata.connection()).runs()[: arguments.limit]
    if arguments.json:
        print(json.dumps([asdict(record) for record in records], indent=2))
        return EXIT_DONE
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("run", "data", "state", "accuracy", "blessed", "pushed", "time"):
        right = heading in ("accuracy", "time")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for record in records:
        table.add_row(
            record.run_id,
            record.dataset if record.span is None else f"span {record.span}",
            record.state if record.stage == "push" else f"{record.state} ({record.stage})",
            "" if record.accuracy is None else f"{100 * record.accuracy:.1f} %",
            "" if record.blessed is None else ("yes" if record.blessed else "no"),
            str(record.pushed_version or ""),
            "" if record.seconds is None else f"{record.seconds:.0f} s",
        )
    Console(highlight=False).print(table)
    return EXIT_DONE


def _quiet_libraries(arguments: argparse.Namespace) -> AbstractContextManager[TextIO]:
    """TensorFlow greets on stderr whatever it is told; only our own lines are for people."""
    return run_logging(Path(os.devnull), verbose=arguments.verbose)


def _report(arguments: argparse.Namespace) -> int:
    workspace = Workspace(arguments.output.absolute())
    run_dir = workspace.run_dir(arguments.run_id).resolve()
    if not (run_dir / "summary.json").is_file():
        raise InputError(
            f"{run_dir}: no summary.json here; `oneshot runs` lists the runs, and only a "
            "finished one has a report"
        )
    with _quiet_libraries(arguments):
        from pipeline.runs.report import write_report

        path = write_report(run_dir)
    print(json.dumps({"report": str(path)}) if arguments.json else path)
    return EXIT_DONE


def _doctor(arguments: argparse.Namespace) -> int:
    from pipeline.cli.doctor import diagnose, print_checks

    config = load_config(arguments.config, arguments.overrides)
    checks = diagnose(config.dataset, data=arguments.data, output=arguments.output.absolute())
    if arguments.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print_checks(checks, Console(highlight=False))
    return EXIT_FAILED if any(check.fatal and not check.ok for check in checks) else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
