"""`oneshot retrain`: the one command that every scheduler calls."""

import argparse
import json
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, Final, get_args

from data_ingest.errors import InputError
from pipeline.config import STAGES, load_config
from pipeline.runs.logs import console_logging
from pipeline.runs.workspace import Workspace
from pipeline.settings import Event

_EXIT_CODES: Final = {
    "failed": 1,
    "timeout": 1,
    "replaced": 1,
    "refused": 2,
    "not blessed": 3,
    "blocked": 3,
}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_parser(
    commands: Any, parents: Sequence[argparse.ArgumentParser], configured: argparse.ArgumentParser
) -> None:
    """Adds `retrain` to the subcommands of `oneshot`.

    Args:
      commands: what `add_subparsers` returned.
      parents: parsers of `--json`, `--verbose` and `--output`.
      configured: parser of `--config` and `--set`.
    """
    parser = commands.add_parser(
        "retrain",
        parents=[*parents, configured],
        help="train on the spans that have landed, and promote the model if it is blessed",
        description="Trains on a window of spans (see `oneshot ingest`) and promotes the model if "
        "it is blessed. One at a time; a span is trained on once. Without a terminal and --json "
        "it says nothing unless something happened, and then one line of JSON.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--span", type=int, metavar="N", help="the last span to train on")
    which.add_argument(
        "--if-new",
        action="store_true",
        help="the newest span, if no model has been trained on it yet",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default="12h",
        metavar="TIME",
        help="give up after this time, for example 90m or 2h (%(default)s)",
    )
    parser.add_argument(
        "--overrun",
        choices=("skip", "replace"),
        default="skip",
        help="if another retraining is under way: skip this one, or end that one (%(default)s)",
    )
    parser.add_argument(
        "--stage",
        choices=STAGES,
        default="push",
        help="how far to go; push, the default, is all the way",
    )
    parser.add_argument(
        "--no-failure-notice",
        action="store_false",
        dest="tell_failure",
        help="whoever calls this tries again, and tells of the failure if that is no use",
    )
    parser.set_defaults(command=retrain_command)


def retrain_command(arguments: argparse.Namespace) -> int:
    """Runs `oneshot retrain` and returns its exit code.

    Raises:
      InputError: configuration or data cannot be used.
      RuntimeError: the lease or ML Metadata cannot be reached.
    """
    from pipeline.retraining.outcome import Outcome
    from pipeline.retraining.retrain import Request, retrain
    from pipeline.runs.metadata_store import locate

    config = load_config(arguments.config, arguments.overrides)
    workspace = Workspace(arguments.output.absolute(), config.push.model_name)
    metadata = locate(config.metadata, workspace)
    unattended = not (arguments.json or arguments.verbose or sys.stdout.isatty())
    request = Request(
        span=arguments.span,
        stage=arguments.stage,
        timeout_seconds=arguments.timeout,
        overrun=arguments.overrun,
        tell_failure=arguments.tell_failure,
        quiet=unattended,
        verbose=arguments.verbose,
    )
    logs = (
        nullcontext()
        if unattended
        else console_logging(sys.stderr, verbose=arguments.verbose, secrets=metadata.secrets)
    )
    with _ended_by_sigterm(), logs:
        try:
            outcome = retrain(config, workspace, metadata, request)
        except InputError as error:
            outcome = Outcome("refused", arguments.span, error=str(error))
        except (RuntimeError, OSError) as error:
            outcome = Outcome("failed", arguments.span, error=str(error))
    if arguments.json or (unattended and outcome.something_happened):
        sys.stdout.write(json.dumps(outcome.document()) + "\n")
    elif not unattended:
        sys.stdout.write(f"{outcome}\n")
    if outcome.error and outcome.something_happened:
        sys.stderr.write(f"oneshot: {outcome.error}\n")
    return _EXIT_CODES.get(outcome.status, 0)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, which systemd and Airflow send, ends the training as an exception would."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _seconds(text: str) -> float:
    """`90m` and the like, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: write a time as 30s, 90m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


def add_notify_parser(
    commands: Any, parents: Sequence[argparse.ArgumentParser], configured: argparse.ArgumentParser
) -> None:
    """Adds `notify` to the subcommands of `oneshot`.

    Args:
      commands: what `add_subparsers` returned.
      parents: parsers of `--json` and `--verbose`.
      configured: parser of `--config` and `--set`.
    """
    parser = commands.add_parser(
        "notify",
        parents=[*parents, configured],
        help="tell whom the settings name, from a scheduler or to try the settings",
        description="Sends a notice by webhook and mail, as `notify` in the configuration says. "
        "Exit code 1 where that did not succeed, or where nobody is to be told of such an event.",
    )
    parser.add_argument("event", choices=get_args(Event))
    parser.add_argument("title", help="one line")
    parser.add_argument(
        "--detail", action="append", default=[], metavar="KEY=VALUE", help="repeatable"
    )
    parser.set_defaults(command=_notify)


def _notify(arguments: argparse.Namespace) -> int:
    from pipeline.retraining.notify import Notice, Notifier

    details = {}
    for detail in arguments.detail:
        key, separator, value = detail.partition("=")
        if not separator or not key:
            raise InputError(f"--detail {detail}: write KEY=VALUE")
        details[key] = value
    settings = load_config(arguments.config, arguments.overrides).notify
    with console_logging(sys.stderr, verbose=arguments.verbose):
        notifier = Notifier(settings)
        told = notifier.tells_of(arguments.event)
        sent = told and notifier.send(Notice(arguments.event, arguments.title, details))
    if not told:
        sys.stderr.write(f"oneshot: nobody is to be told of {arguments.event}; see notify\n")
    if arguments.json:
        sys.stdout.write(json.dumps({"sent": sent}) + "\n")
    return 0 if sent else 1
