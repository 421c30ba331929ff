"""Logs the progress of training, a line every few seconds."""

import logging
import time
from typing import Final

import numpy as np
import tensorflow as tf

from components.trainer.outlook import validated
from data_ingest.sampling.splits import FEW_CLASSES

_log = logging.getLogger(__name__)

SECONDS_A_LINE: Final = 5.0
MOST_PENDING: Final = 64
"""Losses that are collected before the device is waited for."""


class Progress:
    """Collects losses without waiting for the device, and logs a line every few seconds.

    Attributes:
      loss: mean over the steps since the last line, NaN before the first.
      images_per_second: over the same steps.
    """

    def __init__(self, *, first: int, last: int, images_per_step: int) -> None:
        self.loss = float("nan")
        self.images_per_second = 0.0
        self._first = first
        self._last = last
        self._images_per_step = images_per_step
        self._pending: list[tf.Tensor] = []
        self._since_line: list[float] = []
        self._timed_steps = 0
        self._timed_seconds = 0.0
        self._warmed_up_at: float | None = None
        self._window = self._line = time.monotonic()
        self._validation = ""

    @property
    def average_images_per_second(self) -> float:
        """Over all steps but the first, which compiles; validation does not count."""
        return self._timed_steps * self._images_per_step / max(self._timed_seconds, 1e-9)

    def step(self, done: int, loss: tf.Tensor) -> bool:
        """Notes a step; True when a line was logged."""
        self._pending.append(loss)
        if self._warmed_up_at is None:
            self.settle()
            self._timed_steps, self._timed_seconds = 0, 0.0
            self._window = self._warmed_up_at = time.monotonic()
            return False
        due = time.monotonic() - self._line >= SECONDS_A_LINE
        if due or len(self._pending) >= MOST_PENDING:
            self.settle()
        if due:
            self._log(done)
        return due

    def settle(self) -> float:
        """Waits for the device; the mean loss since the last line."""
        if self._pending:
            losses = np.array([float(loss) for loss in self._pending])
            self._since_line += losses.tolist()
            now = time.monotonic()
            seconds = max(now - self._window, 1e-9)
            self.images_per_second = len(losses) * self._images_per_step / seconds
            self._timed_steps += len(losses)
            self._timed_seconds += seconds
            self._window = now
            self._pending = []
        if self._since_line:
            self.loss = float(np.mean(self._since_line))
        return self.loss

    def validated(self, done: int, accuracy: float, *, way: int, classes: int) -> None:
        """Notes a validation; its time does not count as training.

        Of classes too few to tell anything no accuracy is shown.
        """
        if classes >= FEW_CLASSES:
            self._validation = f"  val {validated(way, classes, accuracy)}"
        self._log(done)
        self._window = time.monotonic()

    def _log(self, done: int) -> None:
        now = time.monotonic()
        steps = done - self._first - 1
        pace = (now - (self._warmed_up_at or now)) / max(steps, 1)
        left = int((self._last - done) * pace)
        _log.info(
            f"step {done}/{self._last}  loss {self.loss:.3f}{self._validation}"
            f"  images/s {self.images_per_second:.0f}  left {left // 60}m{left % 60:02d}s"
        )
        self._line = now
        self._since_line = []
