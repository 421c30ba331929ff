"""Kills a process as `kill -9` does, before or after a chosen call of a function of ours."""

import signal
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import importlib, os, sys
target, when, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
owner, name = target.rsplit(".", 1)
try:
    owner = importlib.import_module(owner)
except ImportError:
    module, class_name = owner.rsplit(".", 1)
    owner = getattr(importlib.import_module(module), class_name)
original, calls = getattr(owner, name), []
def fatal(*args, **kwargs):
    calls.append(name)
    if len(calls) < number:
        return original(*args, **kwargs)
    if when == "after":
        original(*args, **kwargs)
    os.kill(os.getpid(), 9)
setattr(owner, name, fatal)
from pipeline.cli.main import main
sys.exit(main(sys.argv[4:]))
"""


def oneshot_killed(*arguments: str, target: str, when: str, call: int = 1) -> None:
    """Runs `oneshot`, which dies before or after it calls a function.

    Args:
      arguments: of `oneshot`.
      target: dotted name of a function, or of a method of a class.
      when: "before": the function does not begin; "after": it has ended.
      call: counts from 1.
    """
    command = [sys.executable, "-c", _SCRIPT, target, when, str(call), *arguments]
    killed = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
