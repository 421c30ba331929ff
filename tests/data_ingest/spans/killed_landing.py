"""Lands a span in processes that are killed, each one step later than the one before.

    python -m tests.data_ingest.spans.killed_landing ROOT FIRST SECOND

Prints, a JSON line for each kill, which spans are there afterwards and what is half-done.
"""

import json
import os
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_ingest.settings import PairSettings
from data_ingest.spans.store import SpanStore


class _Steps:
    """Kills this process before the given one of its writing steps."""

    def __init__(self, last: int) -> None:
        self._left = last

    def watch(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def step(*arguments: Any, **options: Any) -> Any:
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
            return original(*arguments, **options)

        setattr(owner, name, step)


def _land(root: Path, number: int, source: Path) -> None:
    SpanStore(root).land(number, [source], pairs=PairSettings(), max_rejected_share=0.0)


def _killed_after(steps: int, action: Callable[[], None]) -> bool:
    """Whether the action's process was killed; False where it needed fewer steps."""
    child = os.fork()
    if not child:
        watcher = _Steps(steps)
        for owner, names in (
            (os, ("fsync",)),
            (Path, ("mkdir", "chmod", "rename", "open")),
            (zipfile.ZipFile, ("writestr", "close")),
        ):
            for name in names:
                watcher.watch(owner, name)
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the landing failed without being killed")
    return os.WIFSIGNALED(status)


def main(root: Path, first: Path, second: Path) -> None:
    _land(root, 1, first)
    killed, steps = True, 0
    while killed:
        killed = _killed_after(steps, lambda: _land(root, 2, second))
        spans = SpanStore(root).spans()
        for span in spans:
            span.check()
        half_done = [path.name for path in root.iterdir() if path.name.startswith(".landing")]
        state = {"killed": killed, "spans": [s.number for s in spans], "half_done": half_done}
        sys.stdout.write(json.dumps(state) + "\n")
        steps += 1


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
