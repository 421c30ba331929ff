"""Rebuilding in the background."""

import logging
import threading
from dataclasses import dataclass
from typing import Literal

from serving.errors import ServingError
from serving.gallery.gallery import Gallery

State = Literal["idle", "running", "failed"]
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class RebuildState:
    """`done` images of `total` in the rebuild under way, or what stopped the last one."""

    state: State = "idle"
    done: int = 0
    total: int = 0
    error: str = ""


class Follower:
    """A thread that rebuilds a gallery when asked to, or when there is a newer model.

    A rebuild that is cut off by the end of the process continues at the next one.
    """

    def __init__(self, gallery: Gallery, *, every_seconds: float | None = None) -> None:
        """Starts the thread.

        Args:
          gallery: not closed by this.
          every_seconds: how often to look for a newer version of the model; None never does.
        """
        self._gallery = gallery
        self._every = every_seconds
        self._wake = threading.Event()
        self._asked = False
        self._closing = False
        self._state = RebuildState()
        self._thread = threading.Thread(target=self._run, name="gallery-follower", daemon=True)
        self._thread.start()

    @property
    def state(self) -> RebuildState:
        """What it is doing."""
        return self._state

    def rebuild(self) -> None:
        """Asks for a rebuild; returns at once."""
        if self._state.state != "running":
            self._state = RebuildState("running")
        self._asked = True
        self._wake.set()

    def close(self) -> None:
        """Lets the batch under way finish, and ends."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._every)
            self._wake.clear()
            if not self._closing and (self._asked or self._is_behind()):
                self._asked = False
                self._rebuild()

    def _is_behind(self) -> bool:
        try:
            status = self._gallery.status()
        except ServingError as error:
            _LOGGER.warning("the gallery cannot be looked at: %s", error)
            return False
        return None not in (status.model_version, status.latest_version) and (
            status.model_version != status.latest_version
        )

    def _rebuild(self) -> None:
        self._state = RebuildState("running")
        try:
            self._gallery.rebuild(self._progress)
        except _Closing:
            return
        except Exception as error:
            # The old version answers on; the next look tries again.
            _LOGGER.exception("the gallery could not be rebuilt")
            self._state = RebuildState("failed", error=str(error))
        else:
            self._state = RebuildState()

    def _progress(self, done: int, total: int) -> None:
        self._state = RebuildState("running", done, total)
        if self._closing:
            raise _Closing


class _Closing(Exception):
    """Ends a rebuild between two batches."""
