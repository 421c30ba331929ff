"""Shows on a terminal what is being done: the parts of a run, and how far the steps are."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from data_ingest.progress import Step, clock, running, step, watched

NOW: Final = "now"
CACHED: Final = "cached"
"""How a part of a run stands; or its seconds, once it is done."""
_MODULES: Final = 10_400
"""That TFX and what it needs are made of, about; importing them takes half a minute or more."""
_TOO_SHORT: Final = 0.5
"""Seconds that a step is not shown for: it would flicker."""
_BAR: Final = 24
"""Characters."""


def is_terminal(stream: TextIO) -> bool:
    """Whether lines on it can be replaced."""
    try:
        return stream.isatty() and not Console(file=stream).is_dumb_terminal
    except ValueError:  # closed
        return False


@contextmanager
def loading_tfx() -> Iterator[None]:
    """Shows how far the import of TensorFlow and TFX is, which is done meanwhile."""
    name = "Loading TensorFlow and TFX"
    with step(name, _MODULES, measure=lambda: len(sys.modules)):
        yield


class LiveHandler(logging.Handler):
    """Prints log records above a view of the steps that run, which is there while any does."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        terminal: Any = _Terminal(stream)
        self._console = Console(file=terminal, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._parts: Step | None = None
        self._spinner = Spinner("line")
        self._changing = threading.RLock()

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "instead_of_view"):
            self._console.print(self.format(record), soft_wrap=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The view is there meanwhile, as long as any step runs."""
        try:
            with watched(self._changed):
                yield
        finally:
            self._end()

    def _changed(self) -> None:
        with self._changing:
            if not running():
                self._end()
            elif self._live is None:
                self._live = Live(
                    console=self._console,
                    get_renderable=self._view,
                    refresh_per_second=4,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
            for one in running():
                if one.parts:
                    self._parts = one

    def _end(self) -> None:
        with self._changing:
            if self._live is None:
                return
            # How the parts went stays to be read.
            self._live.transient = self._parts is None
            self._live.stop()
            self._live = self._parts = None

    def _view(self) -> RenderableType:
        steps = [one for one in running() if not one.parts and one.seconds > _TOO_SHORT]
        shown: list[RenderableType] = []
        if self._parts is not None:
            shown.append(_checklist(self._parts))
        if steps:
            shown.append(self._bars(steps))
        return Group(*shown)

    def _bars(self, steps: list[Step]) -> Table:
        grid = Table.grid(padding=(0, 1), expand=False)
        grid.add_column(no_wrap=True)
        grid.add_column(width=_BAR)
        grid.add_column(no_wrap=True)
        for one in steps:
            share, left = one.share, one.seconds_left
            if share is None:
                grid.add_row(one.name, self._spinner, f"{clock(one.seconds)} so far")
                continue
            told = f"{share:4.0%}" + (f"  left {clock(left)}" if left is not None else "")
            bar = ProgressBar(total=1.0, completed=share, width=_BAR)
            grid.add_row(one.name, bar, f"{told}  {one.note}")
        return grid


def _checklist(parts: Step) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, state in parts.parts.items():
        grid.add_row(Text(name, style="" if state else "dim"), Text(state or "to come", "dim"))
    ended = [state for state in parts.parts.values() if state not in ("", NOW)]
    cached = sum(state == CACHED for state in ended)
    told = f"{len(ended)} of {len(parts.parts)} done"
    if cached:
        told += f", {cached} of them from the cache"
    grid.add_row(Text(told, style="bold"), Text(clock(parts.seconds), style="bold"))
    return grid


class _Terminal:
    """A stream to a terminal, which may be closed before this is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
