"""The command line: puts the groups of commands together, and turns errors into exit codes.

Exit codes are those of `pipeline.runs.status.ExitCode`. People's text goes to stderr where `--json`
asks for machine-readable stdout.
"""

import argparse
import atexit
import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from data_ingest.errors import InputError
from pipeline.cli import compile as compile_group
from pipeline.cli import (
    demo,
    doctor,
    evaluate,
    gallery,
    releases,
    retrain,
    run,
    serve,
    spans,
    tensorboard,
    worker_pool,
)
from pipeline.cli.shared import Context, on_signals
from pipeline.runs.processes import SignalledError
from pipeline.runs.status import ExitCode

_GOES_ON: Final = "the same command continues from the last finished step"
_GROUPS = (
    *(run, tensorboard, evaluate, spans, retrain, releases, serve, gallery, demo),
    *(compile_group, worker_pool, doctor),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    if argv is None:
        _insist_on_utf8()
    _mend_streams()
    # What TensorFlow and TFX leave is not looked through for garbage: that takes seconds.
    atexit.register(gc.freeze)
    options = command_parser().parse_args(argv)
    # TensorFlow reads these when it is imported, which the commands do only when they need it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # SIGTERM is what systemd, Airflow and `docker stop` send; `nohup` has SIGHUP ignored.
    numbers = [signal.SIGTERM, signal.SIGHUP]
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    with on_signals(_end, *heeded):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        code = int(options.handler(Context(options)) or ExitCode.DONE)
        sys.stdout.flush()
        return code
    except InputError as error:
        return _fail(error, ExitCode.USAGE)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {_GOES_ON}", ExitCode.INTERRUPTED)
    except SignalledError as error:
        return _fail(f"{error}; {_GOES_ON}", ExitCode(error.exit_code))
    except BrokenPipeError:
        # The reader of our stdout went away (`oneshot runs | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.DONE
    except (RuntimeError, OSError, ImportError) as error:
        return _fail(error, ExitCode.FAILED)
    except MemoryError:
        return _fail("out of memory; see `oneshot doctor`", ExitCode.FAILED)


def command_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="oneshot",
        description="Trains, proves and serves a one-shot recogniser: it tells how alike two "
        "images are, so that one image of a new class is enough.",
        epilog="`oneshot COMMAND --help` tells more of a command. A first run: `oneshot run`.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"oneshot {version('siamese-oneshot')}",
        help="show the version and exit",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in _GROUPS:
        group.add_parsers(commands)
    return parser


def _end(number: int) -> None:
    raise SignalledError(number)


def _insist_on_utf8() -> None:
    """Starts this process again where names of files are not read as UTF-8, as TFX writes them."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def _mend_streams() -> None:
    """Opens standard streams that are closed, and has them escape what they cannot encode."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened gets the number, and what is printed.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(error: Exception | str, code: ExitCode) -> ExitCode:
    notes = getattr(error, "__notes__", [])
    try:
        print("\n".join([f"oneshot: {error}", *notes]), file=sys.stderr, flush=True)
    except OSError:
        # The terminal is gone; what is left in the stream would be an error of its own at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return code


if __name__ == "__main__":
    sys.exit(main())
