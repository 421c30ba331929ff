"""The command line: puts the groups of commands together, and turns errors into exit codes.

Exit codes are those of `pipeline.runs.status.ExitCode`. People's text goes to stderr where `--json`
asks for machine-readable stdout.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from data_ingest.errors import InputError
from pipeline.cli import compile as compile_group
from pipeline.cli import doctor, evaluate, gallery, releases, retrain, run, serve, spans
from pipeline.cli.shared import Context
from pipeline.runs.status import ExitCode

_GROUPS = (run, evaluate, spans, retrain, releases, serve, gallery, compile_group, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = command_parser().parse_args(argv)
    # TensorFlow reads these when it is imported, which the commands do only when they need it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    try:
        return int(options.handler(Context(options)) or ExitCode.DONE)
    except InputError as error:
        return _fail(error, ExitCode.USAGE)
    except KeyboardInterrupt:
        return _fail(
            "interrupted; the same command continues from the last finished step",
            ExitCode.INTERRUPTED,
        )
    except BrokenPipeError:
        # The reader of our stdout went away (`oneshot runs | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.DONE
    except (RuntimeError, OSError) as error:
        return _fail(error, ExitCode.FAILED)


def command_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="oneshot", description="Trains, proves and serves a one-shot recogniser."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in _GROUPS:
        group.add_parsers(commands)
    return parser


def _fail(error: Exception | str, code: ExitCode) -> ExitCode:
    notes = getattr(error, "__notes__", [])
    print("\n".join([f"oneshot: {error}", *notes]), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
