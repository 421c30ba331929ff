"""Processes that may not outlive the one that started them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_ingest.durable import process_started

# Starts a process that starts another in a session of its own; says both numbers.
_PROGRAM = """
import subprocess, sys
from pipeline.runs.processes import none_left_behind
with none_left_behind():
    inner = "import subprocess, time; print(subprocess.Popen(['sleep', '600'], " \\
        "start_new_session=True).pid, flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", inner])
    print(child.pid, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["kill -9", "its end"])
def test_what_a_process_started_ends_with_it(how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    started = [int(process.stdout.readline()) for _ in range(2)]
    assert all(process_started(pid) != "0" for pid in started)
    if how == "kill -9":
        process.kill()
    process.communicate("\n")
    deadline = time.monotonic() + 60
    while any(process_started(pid) != "0" for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)
