"""Merges the requests of a moment into batches, as TF Serving's batching session does."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from serving.errors import Code, ServingError, invalid

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Run = Callable[[Arrays], dict[str, Array]]
BatchObserver = Callable[[int, int, float], None]  # rows asked for, rows of padding, seconds
Explain = Callable[[Arrays, int, str], str]  # inputs, their place in the request, message

# What the values of one request can cause: its neighbours in the batch must not pay for it. Memory
# may also run out because the batch as a whole is too large.
_SPLIT_ON: Final = frozenset({Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.RESOURCE_EXHAUSTED})


@dataclass(frozen=True)
class BatchingOptions:
    """The fields of TF Serving's `BatchingParameters`, with defaults for images on a few cores.

    Attributes:
      enabled: whether requests are merged at all.
      max_batch_size: rows in one run; larger requests are run in parts.
      batch_timeout_micros: how long a batch that is not full waits for more. With 0 it starts as
        soon as a thread is free and no other batch of its signature runs: a lonely request never
        waits, and under load batches fill by themselves while another one runs.
      max_enqueued_batches: full batches that may wait for each signature; what comes then is
        refused.
      num_batch_threads: batches that run at the same time; of one signature only full ones do.
      allowed_batch_sizes: sizes that batches are padded to, ascending, the last one
        `max_batch_size`; empty: any size.

    Raises:
      ValueError: a value is out of range or the sizes contradict each other.
    """

    enabled: bool = True
    max_batch_size: int = 32
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 64
    num_batch_threads: int = field(default_factory=lambda: max(2, len(os.sched_getaffinity(0))))
    allowed_batch_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, not {getattr(self, name)}")
        if self.batch_timeout_micros < 0:
            raise ValueError(f"batch_timeout_micros: at least 0, not {self.batch_timeout_micros}")
        sizes = self.allowed_batch_sizes
        if sizes and (
            list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != self.max_batch_size
        ):
            raise ValueError(
                f"allowed_batch_sizes: ascending and ending with max_batch_size "
                f"({self.max_batch_size}), not {list(sizes)}"
            )

    def padded(self, rows: int) -> int:
        """The smallest allowed batch size that holds `rows`."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


class Request:
    """What a caller waits for: complete once all parts are, failed with the first that fails."""

    def __init__(self, parts: int, deadline: float | None) -> None:
        self.future: Future[dict[str, Array]] = Future()
        self.deadline = deadline
        self._parts = parts
        self._results: dict[int, dict[str, Array]] = {}
        self._lock = threading.Lock()

    def claim(self) -> bool:
        """Whether its parts are still worth running; settles it if the deadline has passed."""
        with self._lock:
            future = self.future
            if future.done() or not (future.running() or future.set_running_or_notify_cancel()):
                return False
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.fail(ServingError(Code.DEADLINE_EXCEEDED, "Deadline exceeded before execution"))
            return False
        return True

    def fail(self, error: ServingError) -> None:
        """Settles it, unless it is settled already."""
        with self._lock, suppress(InvalidStateError):
            self.future.set_exception(error)

    def complete(self, part: int, outputs: dict[str, Array]) -> None:
        """Takes the outputs of one part; the last one settles it."""
        with self._lock:
            self._results[part] = outputs
            if len(self._results) < self._parts or self.future.done():
                return
        results = [self._results[at] for at in range(self._parts)]
        try:
            whole = results[0]
            if len(results) > 1:
                whole = {name: np.concatenate([r[name] for r in results]) for name in whole}
        except (MemoryError, ValueError) as error:
            message = f"parts cannot be joined: {type(error).__name__}"
            self.fail(ServingError(Code.INTERNAL, message))
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


class BatchScheduler:
    """The threads in which models run, shared by all queues in turn.

    Attributes:
      changed: the lock of all queues; notified when a batch may begin.
    """

    def __init__(self, threads: int) -> None:
        self.changed = threading.Condition()
        self._queues: deque[BatchQueue] = deque()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"session-run-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, queue: "BatchQueue") -> None:
        """Runs the batches of this queue too."""
        with self.changed:
            self._queues.append(queue)

    def remove(self, queue: "BatchQueue") -> None:
        """Forgets a queue; requests still in it fail as UNAVAILABLE."""
        with self.changed:
            if queue in self._queues:
                self._queues.remove(queue)
            left = queue.drain()
        for part in left:
            part.request.fail(ServingError(Code.UNAVAILABLE, "The model is being unloaded"))

    def close(self) -> None:
        """Ends the threads once their batches are done; what is still queued fails."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
            queues = list(self._queues)
        for thread in self._threads:
            thread.join()
        for queue in queues:
            self.remove(queue)

    def _work(self) -> None:
        while (work := self._next()) is not None:
            queue, parts = work
            try:
                queue.execute(parts)
            except Exception as error:
                # A thread that dies would leave its callers waiting for ever.
                _log.exception("a batch failed")
                for part in parts:
                    part.request.fail(ServingError(Code.INTERNAL, f"{type(error).__name__}"))
            with self.changed:
                queue.running -= 1
            # The parts hold images and results; the next batch may be long in coming.
            del work, queue, parts

    def _next(self) -> "tuple[BatchQueue, list[Part]] | None":
        with self.changed:
            while not self._closed:
                wait: float | None = None
                now = time.monotonic()
                for _ in range(len(self._queues)):
                    queue = self._queues[0]
                    self._queues.rotate(-1)  # in turn, so that a busy queue starves no other
                    seconds = queue.ready_in(now)
                    if seconds is None:
                        continue
                    if seconds <= 0:
                        parts = queue.take()
                        # Nobody else may have been told of what did not fit.
                        self.changed.notify()
                        return queue, parts
                    wait = seconds if wait is None else min(wait, seconds)
                self.changed.wait(wait)
            return None


class BatchQueue:
    """Requests for one signature of one version.

    Args:
      scheduler: the threads that run its batches.
      run: inputs to outputs, all with the batch as dimension 0. Raises `ServingError`.
      options: sizes and limits of this queue.
      observer: told of each run that succeeds, by the thread that ran it.
      explain: gives a better message to a request that is refused (INVALID_ARGUMENT).

    Attributes:
      rows: that wait.
      running: batches that were taken and are not over.
    """

    def __init__(
        self,
        scheduler: BatchScheduler,
        run: Run,
        *,
        options: BatchingOptions,
        observer: BatchObserver | None = None,
        explain: Explain | None = None,
    ) -> None:
        self._changed = scheduler.changed
        self._run = run
        self._options = options
        self._observer = observer
        self._explain = explain
        self._parts: deque[Part] = deque()
        self.rows = 0
        self.running = 0
        scheduler.add(self)

    def submit(self, inputs: Arrays, *, deadline: float | None = None) -> Future[dict[str, Array]]:
        """Enqueues a request.

        Args:
          inputs: at least one array; all with the same dimension 0.
          deadline: an instant of `time.monotonic()`; a request that has not begun by then fails
            with DEADLINE_EXCEEDED.

        Returns:
          What `run` gives for these rows. It may be cancelled until its batch begins.

        Raises:
          ServingError: RESOURCE_EXHAUSTED: the queue is full; INVALID_ARGUMENT: dimensions that
            cannot be merged.
        """
        rows = self._batch_rows(inputs)
        parts = self._split(inputs, rows, deadline)
        with self._changed:
            limit = self._options.max_enqueued_batches * self._options.max_batch_size
            # A request larger than the whole queue would otherwise be refused for ever.
            if self._parts and self.rows + rows > limit:
                raise ServingError(
                    Code.RESOURCE_EXHAUSTED,
                    "The batch scheduling queue to which this task was submitted is full "
                    f"({self.rows} of {limit} rows)",
                )
            self._parts.extend(parts)
            self.rows += rows
            if self.ready_in(parts[0].since) is not None:
                self._changed.notify(len(parts))
        return parts[0].request.future

    def _batch_rows(self, inputs: Arrays) -> int:
        if not self._options.enabled:
            return 1
        if any(array.ndim == 0 for array in inputs.values()):
            raise invalid("Batching Run() input tensors must have at least one dimension")
        sizes = {array.shape[0] for array in inputs.values()}
        if len(sizes) != 1:
            raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
        return int(sizes.pop())

    def _split(self, inputs: Arrays, rows: int, deadline: float | None) -> list[Part]:
        size = self._options.max_batch_size if self._options.enabled else rows
        starts = range(0, max(rows, 1), max(size, 1))
        request = Request(len(starts), deadline)
        # An empty request stays alone: in company it would succeed where alone the graph refuses.
        shape = (rows == 0, *((name, a.dtype, a.shape[1:]) for name, a in inputs.items()))
        whole = len(starts) == 1
        now = time.monotonic()
        return [
            Part(
                request,
                index,
                inputs if whole else {n: a[start : start + size] for n, a in inputs.items()},
                rows if whole else min(size, rows - start),
                shape,
                now,
            )
            for index, start in enumerate(starts)
        ]

    def ready_in(self, now: float) -> float | None:
        """Seconds until a batch should begin, None if none should yet. Under the lock."""
        if not self._parts:
            return None
        if not self._options.enabled or self.rows >= self._options.max_batch_size:
            return 0.0
        if self.running:
            # Small batches beside each other take longer than a larger one after the other.
            return None
        return self._parts[0].since + self._options.batch_timeout_micros / 1e6 - now

    def take(self) -> list[Part]:
        """The oldest parts that fit into one batch. Under the lock."""
        first = self._parts.popleft()
        batch, rows = [first], first.rows
        while self._options.enabled and self._parts:
            part = self._parts[0]
            if rows + part.rows > self._options.max_batch_size or part.shape != first.shape:
                break
            batch.append(self._parts.popleft())
            rows += part.rows
        self.rows -= rows
        self.running += 1
        return batch

    def drain(self) -> list[Part]:
        """Everything that waits. Under the lock."""
        left, self.rows = list(self._parts), 0
        self._parts.clear()
        return left

    def execute(self, parts: Sequence[Part]) -> None:
        """Runs one batch and settles its requests."""
        parts = [part for part in parts if part.request.claim()]
        if not parts:
            return
        try:
            outputs = self._run_merged(parts)
        except ServingError as error:
            if error.code in _SPLIT_ON and len(parts) > 1:
                middle = len(parts) // 2
                self.execute(parts[:middle])
                self.execute(parts[middle:])
                return
            for part in parts:
                # Each caller raises its own: a shared one would collect all their tracebacks.
                part.request.fail(ServingError(error.code, self._message(part, error)))
            return
        for part, result in zip(parts, outputs, strict=True):
            part.request.complete(part.index, result)

    def _message(self, part: Part, error: ServingError) -> str:
        if not part.rows:
            # It ran alone, and what the graph makes of it explains nothing.
            return f"A request of 0 rows is refused by the model: {error.message}"
        if self._explain is None or error.code is not Code.INVALID_ARGUMENT:
            return error.message
        first = part.index * self._options.max_batch_size
        return self._explain(part.inputs, first, error.message)

    def _run_merged(self, parts: Sequence[Part]) -> list[dict[str, Array]]:
        if not self._options.enabled:
            return [self._timed(part.inputs, 1, 0) for part in parts]
        rows = sum(part.rows for part in parts)
        padding = self._options.padded(rows) - rows if rows else 0
        if len(parts) == 1 and not padding:
            merged = parts[0].inputs
        else:
            merged = {}
            for name, array in parts[0].inputs.items():
                # Rows that are there anyway: whatever they are, the graph takes them.
                filler = [np.repeat(array[:1], padding, axis=0)] if padding else []
                merged[name] = np.concatenate([*(part.inputs[name] for part in parts), *filler])
        outputs = self._timed(merged, rows, padding)
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != rows + padding:
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                    f"dimension sizes of the input tensors ({name}: {array.shape})",
                )
        results, start = [], 0
        for part in parts:
            results.append({n: a[start : start + part.rows] for n, a in outputs.items()})
            start += part.rows
        return results

    def _timed(self, inputs: Arrays, rows: int, padding: int) -> dict[str, Array]:
        begin = time.perf_counter()
        outputs = self._run(inputs)
        if self._observer is not None:
            self._observer(rows, padding, time.perf_counter() - begin)
        return outputs
