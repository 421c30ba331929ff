"""`oneshot notify`: tells people something, as retrainings do."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, get_args

from data_ingest.errors import InputError
from pipeline.config import load_config
from pipeline.logs import console_logging
from pipeline.notify_settings import Event


def add_parser(
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
    from pipeline.notify import Notice, Notifier

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
