"""Commands as processes, with the locales, standard streams and signals that shells give them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = """
import atexit, gc, os, signal, sys, time
from pathlib import Path
from pipeline.cli import main as command_line
from pipeline.cli.shared import OUTPUT, add_command

class Group:
    def add_parsers(commands):
        add_command(commands, "try", do, OUTPUT, text="try")

def do(context):
    output = context.options.output
    {body}

{preamble}
command_line._GROUPS = (Group,)
sys.exit(command_line.main())
"""
_SHOW = "context.show({'name': 'Лиса \\udcff'}, 'Лиса \\udcff')"

Try = Callable[..., "subprocess.CompletedProcess[str]"]


def _heed_signals() -> None:
    """Children of a shell's background job would ignore an interrupt, of `nohup` the other."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def try_command(tmp_path: Path) -> Try:
    """Runs `oneshot try`, which does what `body` says, in a process of its own."""

    def run(
        body: str, *arguments: str, preamble: str = "", **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        program = tmp_path / "program.py"
        program.write_text(_PROGRAM.format(body=body, preamble=preamble), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        streams.setdefault("preexec_fn", _heed_signals)
        return subprocess.run(
            [sys.executable, str(program), "try", *arguments],
            check=False,
            encoding="utf-8",
            **{**streams, "env": {**environment, **options.get("env", {})}},
        )

    return run


def test_names_are_utf_8_whatever_the_locale(try_command: Try, tmp_path: Path) -> None:
    output = tmp_path / "Лиса"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    done = try_command("output.mkdir(); print(output.name)", "--output", str(output), env=locale)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Лиса\n", "")
    assert output.is_dir()


def test_what_a_terminal_cannot_show_is_escaped(try_command: Try) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    done = try_command(_SHOW, env=ascii_only)
    assert (done.returncode, done.stdout) == (0, "\\u041b\\u0438\\u0441\\u0430 \\udcff\n")
    done = try_command(_SHOW, "--json", env=ascii_only)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"name": "Лиса \udcff"})


def test_a_file_does_not_get_what_is_printed_where_stdout_is_closed(
    try_command: Try, tmp_path: Path
) -> None:
    body = "file = open(output, 'w'); print('printed', flush=True); os.write(1, b'printed')"
    done = try_command(
        body, "--output", str(tmp_path / "file"), preexec_fn=lambda: os.closerange(0, 2)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "file").read_text() == ""


def test_an_end_does_not_wait_for_garbage_collection(try_command: Try) -> None:
    # What is registered first is called last.
    early = "atexit.register(lambda: print(gc.get_freeze_count() > 0))"
    done = try_command("pass", preamble=early)
    assert (done.returncode, done.stdout) == (0, "True\n")


def test_a_reader_that_went_away_is_no_error(try_command: Try) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = try_command("print('one line, which waits in a buffer')", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP: its terminal or session was closed"),
    ],
)
def test_a_signal_ends_a_command_in_order_and_without_delay(
    try_command: Try, number: signal.Signals, code: int, told: str
) -> None:
    body = f"""
    try:
        os.kill(os.getpid(), {int(number)}); time.sleep(60)
    finally:
        print('let go')
    """
    done = try_command(body)
    assert done.returncode == code
    assert done.stdout.startswith("let go\n")
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"oneshot: {told}; the same command continues")
