"""A request on its way through a batch queue, in one part or several."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import Code, ServingError

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


class Request:
    """What a caller waits for: complete once all parts are, failed with the first that fails."""

    def __init__(self, parts: int, deadline: float | None) -> None:
        self.future: Future[dict[str, Array]] = Future()
        self.deadline = deadline
        self._results: list[dict[str, Array] | None] = [None] * parts
        self._missing = parts
        self._claimed = False
        self._over = False
        self._lock = threading.Lock()

    def claim(self) -> bool:
        """Whether its parts are still worth running; settles it if the deadline has passed."""
        with self._lock:
            if self._over:
                return False
            if not self._claimed:
                if not self.future.set_running_or_notify_cancel():
                    self._over = True
                    return False
                self._claimed = True
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.fail(ServingError(Code.DEADLINE_EXCEEDED, "Deadline exceeded before execution"))
            return False
        return True

    def fail(self, error: ServingError) -> None:
        """Settles it, unless it is settled already."""
        with self._lock:
            if self._over:
                return
            self._over = True
        if self._claimed or self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def complete(self, part: int, outputs: dict[str, Array]) -> None:
        """Takes the outputs of one part; the last one settles it."""
        with self._lock:
            self._results[part] = outputs
            self._missing -= 1
            if self._missing or self._over:
                return
            self._over = True
        results = [result for result in self._results if result is not None]
        if len(results) == 1:
            self.future.set_result(results[0])
            return
        try:
            whole = {name: np.concatenate([r[name] for r in results]) for name in results[0]}
        except (MemoryError, ValueError) as error:
            self.future.set_exception(
                ServingError(Code.INTERNAL, f"parts cannot be joined: {type(error).__name__}")
            )
        else:
            self.future.set_result(whole)


@dataclass(frozen=True)
class Part:
    """Rows of one request that go into one batch."""

    request: Request
    index: int
    inputs: Arrays
    rows: int
    shape: tuple[Any, ...]  # parts merge only with those of equal types and row shapes
    since: float
