"""`oneshot retrain`, the one command that every scheduler calls, and `oneshot notify`."""

import argparse
import re
import sys
from contextlib import nullcontext
from typing import Any, Final

from data_ingest.errors import InputError
from pipeline.cli.shared import CONFIGURED, OUTPUT, Context, add_command, print_json
from pipeline.runs.processes import why_stopped
from pipeline.runs.status import ExitCode, Status
from pipeline.settings import EVENTS, STAGES

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST: Final = 366 * _UNITS["d"]


def add_parsers(commands: Any) -> None:
    """Adds the group to the commands of `oneshot`."""
    parser = add_command(
        commands,
        "retrain",
        _retrain,
        OUTPUT,
        CONFIGURED,
        text="train on the newest spans, and promote the model if it is good; for schedulers",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--span", type=int, metavar="N", help="train on spans up to this one")
    which.add_argument(
        "--if-new",
        action="store_true",
        help="train on spans up to the newest, unless that has been done",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default="12h",
        metavar="TIME",
        help="give up after this time, such as 90m or 2h (default: %(default)s)",
    )
    parser.add_argument(
        "--overrun",
        choices=("skip", "replace"),
        default="skip",
        help="if another retraining is under way: skip this one, or replace that one (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--stage",
        choices=STAGES,
        default="push",
        help="how far to go (default: push, which is all the way)",
    )
    parser.add_argument(
        "--no-failure-notice",
        action="store_false",
        dest="tell_failure",
        help="send no notice of a failure: whoever calls this tries again, and tells people",
    )

    notify = add_command(
        commands,
        "notify",
        _notify,
        CONFIGURED,
        text="tell people of something by mail or webhook, or try the settings for it",
    )
    notify.add_argument("event", choices=EVENTS, help="what has happened")
    notify.add_argument("title", help="what to say, in one line")
    notify.add_argument(
        "--detail",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a fact to add; may be given several times",
    )


def _retrain(context: Context) -> ExitCode:
    """Trains on a window of spans (see `oneshot ingest`) and promotes the model if it is blessed.

    One at a time; a span is trained on once. Without a terminal and --json it says nothing unless
    something happened, and then one line of JSON.
    """
    from pipeline.retraining.outcome import Outcome
    from pipeline.retraining.retrain import Request, retrain

    options, metadata = context.options, context.metadata
    unattended = not (options.json or options.verbose or sys.stdout.isatty())
    request = Request(
        span=options.span,
        stage=options.stage,
        timeout_seconds=options.timeout,
        overrun=options.overrun,
        tell_failure=options.tell_failure,
        quiet=unattended,
        verbose=options.verbose,
    )
    logs = nullcontext() if unattended else context.progress(metadata.secrets)
    try:
        with logs:
            outcome = retrain(context.config, context.workspace, metadata, request)
    except (KeyboardInterrupt, SystemExit) as stopped:
        if options.json or unattended:
            ended = Outcome(Status.INTERRUPTED, options.span, error=why_stopped(stopped))
            print_json(ended.document(), indent=None)
        raise
    if options.json or (unattended and outcome.status.something_happened):
        print_json(outcome.document(), indent=None)
    elif not unattended:
        print(outcome)
    if outcome.error and outcome.status.something_happened:
        print(f"oneshot: {outcome.error}", file=sys.stderr)
    return outcome.status.exit_code


def _seconds(text: str) -> float:
    """`90m` and the like, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write a time as 30s, 90m, 2h or 1d, of at most a year"
        )
    return seconds


def _notify(context: Context) -> ExitCode:
    """Sends a notice by webhook and mail to those whom `notify` in the configuration names. To try
    the settings: oneshot notify failed "a test".

    Exit code 1: it could not be sent, or nobody is to be told of such an event.
    """
    from pipeline.retraining.notify import Notice, Notifier

    event = context.options.event
    details = {}
    for detail in context.options.detail:
        key, separator, value = detail.partition("=")
        if not separator or not key:
            raise InputError(f"--detail {detail}: write KEY=VALUE")
        details[key] = value
    notifier = Notifier(context.config.notify)
    told = notifier.tells_of(event)
    with context.progress():
        sent = told and notifier.send(Notice(event, context.options.title, details))
    if not told:
        print(f"oneshot: nobody is to be told of {event}; see notify", file=sys.stderr)
    context.show({"sent": sent})
    return ExitCode.DONE if sent else ExitCode.FAILED
