"""The view of a run on a terminal, which here is a pseudo-terminal."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
PROGRAM = """
import logging, sys, time
from pathlib import Path
from data_ingest.progress import INSTEAD_OF_VIEW, step
from pipeline.runs.live import CACHED, NOW
from pipeline.runs.logs import run_logging

log = logging.getLogger("pipeline")
with run_logging(Path(sys.argv[1])):
    log.info("before any step")
    with step("Run", parts=["Reads", "Trains", "Pushes"], logged=False) as run:
        run.parts["Reads"] = CACHED
        run.parts["Trains"] = NOW
        with step("Training", 4) as training:
            log.info("[2/3] Trains", extra=INSTEAD_OF_VIEW)
            log.info("a line of the step")
            training.at(3)
            training.note = "loss 0.5"
            time.sleep(1.5)
        print("of a library")
        if len(sys.argv) > 2:
            run.parts["Trains"] = "not finished"
            raise SystemExit("it broke")
        run.parts["Trains"] = "1.2 s"
print("the result")
"""


def on_terminal(arguments: Sequence[str], **environ: str) -> tuple[int, str, str]:
    """Runs PROGRAM with a terminal for stderr: exit code, stdout, and what the terminal got."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=its,
        text=True,
    )
    os.close(its)
    got = b""
    try:
        while piece := os.read(ours, 65536):
            got += piece
    except OSError:  # how Linux says that nobody has the terminal open any more
        pass
    os.close(ours)
    out, _ = process.communicate()
    return process.returncode, out, got.decode()


def plain(text: str) -> str:
    """Without what moves the cursor and colours letters."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


def test_a_terminal_shows_the_parts_and_the_steps_and_keeps_how_the_parts_went(
    tmp_path: Path,
) -> None:
    code, out, got = on_terminal([str(tmp_path / "run.log")])
    assert (code, out) == (0, "the result\n")
    shown = plain(got)
    assert re.search(r"\d\d:\d\d:\d\d  before any step\n", shown)
    assert re.search(r"\d\d:\d\d:\d\d  a line of the step\n", shown)
    assert "[2/3] Trains" not in shown
    assert re.search(r"Training +[━╸╺]+ +75%  left 0m0\ds  loss 0\.5", shown)
    assert re.search(r"Reads +cached\s+Trains +now\s+Pushes +to come\s+1 of 3 done, 1 of ", shown)
    last = shown[shown.rindex("Reads") :]
    assert re.search(r"Reads +cached\s+Trains +1\.2 s\s+Pushes +to come\s+2 of 3 done", last)
    assert "Training" not in last
    # The cursor was hidden, and is there again.
    assert got.rindex("\x1b[?25h") > got.rindex("\x1b[?25l")
    log = (tmp_path / "run.log").read_text("utf-8")
    assert "[2/3] Trains" in log
    assert "of a library" in log
    assert "\x1b" not in log


def test_an_exception_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    code, _, got = on_terminal([str(tmp_path / "run.log"), "fail"])
    assert code == 1
    shown = plain(got)
    last = shown[shown.rindex("Reads") :]
    assert re.search(r"Trains +not finished\s+Pushes +to come\s+2 of 3 done.*\nit broke\n", last)
    assert got.rindex("\x1b[?25h") > got.rindex("\x1b[?25l")


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_terminal_that_cannot_replace_lines_gets_them_all(
    environ: dict[str, str], tmp_path: Path
) -> None:
    _, _, got = on_terminal([str(tmp_path / "run.log")], **environ)
    assert "\x1b" not in got
    assert "[2/3] Trains" in got


def test_a_file_gets_lines_whatever_the_environment_says_of_colours(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run.log")],
        cwd=CHECKOUT,
        env={**os.environ, "TERM": "xterm", "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in done.stderr
    assert "[2/3] Trains" in done.stderr
