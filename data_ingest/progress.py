"""Tells how far long steps are: to a log now and then, and to whoever looks at `running()`.

Steps may be inside others. Of a terminal `pipeline.runs.live` makes a view of those that run.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

SECONDS_A_LINE: Final = 10.0
INSTEAD_OF_VIEW: Final = {"instead_of_view": True}
"""`extra` of log lines that a live view makes superfluous."""
T = TypeVar("T")

_log = logging.getLogger(__name__)
_running: list["Step"] = []
_watchers: list[Callable[[], None]] = []


class Step:
    """Something that takes a while, and how far it is; any thread may look and count.

    Attributes:
      name: what is done, for people.
      total: how much there is to do; None where that is not known.
      parts: how each part of it stands, by name, in order: `""` where it is still to come.
      note: what else there is to be known now, for people.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        *,
        done: int = 0,
        parts: Sequence[str] = (),
        measure: Callable[[], int] | None = None,
    ) -> None:
        self.parts = dict.fromkeys(parts, "")
        self.note = ""
        self._measure = measure
        self._lock = threading.Lock()
        self._begin(name, total, done)

    def _begin(self, name: str, total: int | None, done: int) -> None:
        self.name, self.total = name, total
        self._first = self._done = done
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self._started

    @property
    def share(self) -> float | None:
        """How much of it is done, in [0, 1]; None where that is not known."""
        done = self._done if self._measure is None else self._measure()
        if not self.total or done == 0:
            return None
        return min(done / self.total, 1.0)

    @property
    def seconds_left(self) -> float | None:
        """By the pace so far; None where that is not known."""
        share, first = self.share, self._first / (self.total or 1)
        if share is None or share <= first:
            return None
        return self.seconds * (1 - share) / (share - first)

    def advance(self, count: int = 1) -> None:
        """Notes that so much more is done."""
        with self._lock:
            self._done += count

    def at(self, done: int, total: int | None = None) -> None:
        """Notes how much is done, and of how much."""
        with self._lock:
            self._done = done
            self.total = total or self.total

    def advance_in(self, name: str, count: int, total: int | None) -> None:
        """Notes that so much more is done of what is named; a new name begins from 0.

        Args:
          name: what is done, for people.
          count: how much more.
          total: how much there is to do; None: as much as before.
        """
        with self._lock:
            if name != self.name:
                self._begin(name, total or self.total, 0)
            self._done += count

    def __str__(self) -> str:
        share, left = self.share, self.seconds_left
        if share is None:
            return f"{self.name}: {clock(self.seconds)} so far"
        return f"{self.name}: {share:.0%}" + (f", left {clock(left)}" if left is not None else "")


def clock(seconds: float) -> str:
    """`0m05s`, `1h02m`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


@contextmanager
def step(
    name: str,
    total: int | None = None,
    *,
    done: int = 0,
    parts: Sequence[str] = (),
    measure: Callable[[], int] | None = None,
    logged: bool = True,
) -> Iterator[Step]:
    """Meanwhile this is what is being done; the log has a line of it every 10 seconds.

    Args:
      name: what is done, for people.
      total: how much there is to do.
      done: how much of it was done before.
      parts: see `Step`.
      measure: called for how much is done, where nobody counts.
      logged: whether there are lines; not where there are others.
    """
    one = Step(name, total, done=done, parts=parts, measure=measure)
    over = threading.Event()
    teller = threading.Thread(target=_tell, args=(one, over), name="progress", daemon=True)
    _running.append(one)
    _tell_watchers()
    if logged:
        teller.start()
    try:
        yield one
    finally:
        over.set()
        _running.remove(one)
        _tell_watchers()
        if logged:
            teller.join()


def counted(items: Iterable[T], name: str, total: int) -> Iterator[T]:
    """The items, taking which is a step."""
    with step(name, total) as one:
        for item in items:
            yield item
            one.advance()


def running() -> tuple[Step, ...]:
    """What this process is doing, the outermost first."""
    return tuple(_running)


def advance(name: str, count: int, total: int | None = None) -> None:
    """Counts for the innermost step of this process, which does what is named now.

    For workers of Beam: those in other processes have no step, and count for nothing.
    """
    for innermost in running()[-1:]:
        innermost.advance_in(name, count, total)


@contextmanager
def watched(changed: Callable[[], None]) -> Iterator[None]:
    """Meanwhile `changed` is called whenever a step has begun or ended."""
    _watchers.append(changed)
    try:
        yield
    finally:
        _watchers.remove(changed)


def _tell_watchers() -> None:
    for changed in tuple(_watchers):
        changed()


def _tell(one: Step, over: threading.Event) -> None:
    while not over.wait(SECONDS_A_LINE):
        # Of steps inside each other the innermost says how far it goes.
        if _running[-1:] == [one]:
            _log.info("%s", one, extra=INSTEAD_OF_VIEW)
