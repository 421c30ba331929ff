"""Tells the progress of training, by a line every few seconds and as a step."""

import logging
import time
from typing import Final

import numpy as np
import tensorflow as tf

from components.trainer.outlook import validated
from data_ingest.progress import INSTEAD_OF_VIEW, SECONDS_A_LINE, Step, clock
from data_ingest.sampling.splits import FEW_CLASSES

_log = logging.getLogger(__name__)

SECONDS_A_POINT: Final = 5.0
"""Of the curves."""
MOST_PENDING: Final = 64
"""Losses that are collected before the device is waited for."""


class Progress:
    """Collects losses without waiting for the device, and tells of them every few seconds.

    Attributes:
      loss: mean over the steps since the last point, NaN before the first.
      images_per_second: over the same steps.
    """

    def __init__(self, shown: Step, *, first: int, last: int, images_per_step: int) -> None:
        """Begins.

        Args:
          shown: what a view shows of the training.
          first: steps that had been made before.
          last: steps there are to be.
          images_per_step: of all replicas.
        """
        self.loss = float("nan")
        self.images_per_second = 0.0
        self._shown = shown
        self._first = first
        self._last = last
        self._images_per_step = images_per_step
        self._pending: list[tf.Tensor] = []
        self._since_point: list[float] = []
        self._timed_steps = 0
        self._timed_seconds = 0.0
        self._warmed_up_at: float | None = None
        self._window = self._point = time.monotonic()
        self._line = float("-inf")
        self._validation = ""

    @property
    def average_images_per_second(self) -> float:
        """Over all steps but the first, which compiles; validation does not count."""
        return self._timed_steps * self._images_per_step / max(self._timed_seconds, 1e-9)

    def step(self, done: int, loss: tf.Tensor) -> bool:
        """Notes a step; True when it is time for a point of the curves."""
        self._shown.at(done)
        self._pending.append(loss)
        if self._warmed_up_at is None:
            self.settle()
            self._timed_steps, self._timed_seconds = 0, 0.0
            self._window = self._warmed_up_at = time.monotonic()
            return False
        due = time.monotonic() - self._point >= SECONDS_A_POINT
        if due or len(self._pending) >= MOST_PENDING:
            self.settle()
        if due:
            self._tell(done)
        return due

    def settle(self) -> float:
        """Waits for the device; the mean loss since the last point."""
        if self._pending:
            losses = np.array([float(loss) for loss in self._pending])
            self._since_point += losses.tolist()
            now = time.monotonic()
            seconds = max(now - self._window, 1e-9)
            self.images_per_second = len(losses) * self._images_per_step / seconds
            self._timed_steps += len(losses)
            self._timed_seconds += seconds
            self._window = now
            self._pending = []
        if self._since_point:
            self.loss = float(np.mean(self._since_point))
        return self.loss

    def validated(self, done: int, accuracy: float, *, way: int, classes: int) -> None:
        """Notes a validation; its time does not count as training.

        Of classes too few to tell anything no accuracy is shown.
        """
        if classes >= FEW_CLASSES:
            self._validation = f"  val {validated(way, classes, accuracy)}"
        self._tell(done, at_once=True)
        self._window = time.monotonic()

    def _tell(self, done: int, *, at_once: bool = False) -> None:
        now = time.monotonic()
        steps = done - self._first - 1
        pace = (now - (self._warmed_up_at or now)) / max(steps, 1)
        told = f"loss {self.loss:.3f}{self._validation}  images/s {self.images_per_second:.0f}"
        self._shown.note = told
        if at_once or now - self._line >= SECONDS_A_LINE:
            left = clock((self._last - done) * pace)
            line = f"step {done}/{self._last}  {told}  left {left}"
            _log.info("%s", line, extra=INSTEAD_OF_VIEW)
            self._line = now
        self._point = now
        self._since_point = []
