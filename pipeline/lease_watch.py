"""A lease while it is held: prolonged or confirmed in the background, and its loss told at once."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from pipeline.lease_store import LeaseStoreError

_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS: Final = 5.0
_MARGIN: Final = 0.2
"""Share of the time that is left for ending: another may take over when all of it has passed."""


class LeaseLostError(RuntimeError):
    """The lease expired, or is another's: whatever it guarded must stop."""


class Watch:
    """Asks again and again how long the lease is held, and tells when it is not any more."""

    def __init__(self, *, ask: Callable[[], float], on_lost: Callable[[str], None]) -> None:
        """Starts nothing yet.

        Args:
          ask: prolongs or confirms the lease, and returns for how many seconds from the moment
            it was called. Raises LeaseLostError or LeaseStoreError.
          on_lost: called once, in another thread, with the reason.
        """
        self._ask = ask
        self._on_lost = on_lost
        self._deadline = 0.0
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._told = threading.Lock()
        self._threads: list[threading.Thread] = []

    @property
    def lost(self) -> bool:
        """Whether the lease is lost, or may be: nobody could ask in time."""
        return self._lost.is_set() or _clock() > self._deadline

    def ask(self) -> None:
        """Asks once.

        Raises:
          LeaseLostError: it is not held any more.
          LeaseStoreError: the store does not answer.
        """
        started = _clock()
        try:
            seconds = self._ask()
        except LeaseLostError:
            self._deadline = 0.0
            raise
        self._deadline = started + seconds * (1 - _MARGIN)

    def start(self) -> None:
        """Goes on in the background until `end`.

        Raises:
          LeaseLostError: it is not held any more.
          LeaseStoreError: the store does not answer.
        """
        self.ask()
        for work in (self._ask_often, self._watch_the_time):
            thread = threading.Thread(target=work, name=f"lease-{work.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(self) -> None:
        """Asks no more."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask_often(self) -> None:
        while not self._ended.wait(min((self._deadline - _clock()) / 3, _POLL_SECONDS)):
            try:
                self.ask()
            except LeaseStoreError as error:
                _LOGGER.warning("the lease could not be renewed: %s", error)
                # A store that fails at once is not asked without a pause.
                self._ended.wait(0.1)
            except LeaseLostError as error:
                self._lose(str(error))
                return

    def _watch_the_time(self) -> None:
        """A thread of its own: a question may hang as long as a file server does."""
        while not self._ended.wait(min(max(self._deadline - _clock(), 0.01), 0.5)):
            if _clock() > self._deadline:
                self._lose("the lease could not be renewed in time")
                return

    def _lose(self, reason: str) -> None:
        with self._told:
            if self._lost.is_set():
                return
            self._lost.set()
        self._on_lost(reason)


def _clock() -> float:
    """Seconds that go on while the machine is suspended, as they do for everybody else."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
