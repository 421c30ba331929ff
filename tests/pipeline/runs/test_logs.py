"""What goes to a run's log and what to people."""

import logging
import os
import pty
from pathlib import Path

from pipeline.runs.logs import run_logging


def test_a_terminal_that_was_closed_is_no_error(tmp_path: Path) -> None:
    ours, its = pty.openpty()
    before = os.dup(2)
    os.dup2(its, 2)
    os.close(its)
    try:
        with run_logging(tmp_path / "run.log"):
            os.close(ours)
            logging.getLogger("pipeline").info("to nobody")
    finally:
        os.dup2(before, 2)
        os.close(before)
    assert "INFO pipeline: to nobody" in (tmp_path / "run.log").read_text()
