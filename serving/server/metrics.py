"""Counts requests and batches under the names that TF Serving exports to Prometheus."""

import asyncio
import bisect
import itertools
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily, UnknownMetricFamily
from prometheus_client.metrics_core import Metric

from serving.errors import Code, ServingError

_log = logging.getLogger(__name__)

METRICS_PATH: Final = "/monitoring/prometheus/metrics"
PREFIX: Final = ":tensorflow:serving:"
"""TF Serving writes the slashes of its metrics' names as colons, which Prometheus allows."""

LATENCY_BUCKETS: Final = tuple(10 * 1.8**power for power in range(33))
"""Upper limits in microseconds, those of TF Serving: 10 us to about 20 minutes."""
PADDING_BUCKETS: Final = tuple(float(2**power) for power in range(10))
UNKNOWN_MODEL: Final = "(unknown)"

Labels = tuple[str, ...]


class ServingMetrics:
    """What the server has done since it started, from any thread, for Prometheus to read.

    Clients choose the model name that they ask for, so only names of models are kept apart: all
    others are counted as one, or a client could fill the memory with names.
    """

    def __init__(self, models: Iterable[str] = ()) -> None:
        """`models`: names known beforehand; others become known by their first success."""
        self._models = set(models)
        self._lock = threading.Lock()
        self._requests = _Counts(
            "request_count", "The total number of requests.", ("model_name", "status")
        )
        self._latency = _Histogram(
            "request_latency",
            "Distribution of wall time (in microseconds) for requests.",
            ("model_name", "API", "entrypoint"),
            LATENCY_BUCKETS,
        )
        self._runtime = _Histogram(
            "runtime_latency",
            "Distribution of wall time (in microseconds) for the TensorFlow runtime.",
            ("model_name", "API", "runtime"),
            LATENCY_BUCKETS,
        )
        self._batches = _Counts(
            "batching:processed_batch_size",
            "The number of batches run, by signature and size.",
            ("model_name", "op_name", "batch_size"),
        )
        self._padding = _Histogram(
            "batching:padding_size",
            "Rows of a batch that are filler.",
            ("model_name", "op_name"),
            PADDING_BUCKETS,
        )
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    @contextmanager
    def answering(self, model: str, method: str, entry_point: str) -> Iterator[None]:
        """Counts the request that the block answers; see `request`.

        Raises:
          ServingError: INTERNAL in place of any other exception: what happened is for the log, the
            client could do nothing with it.
        """
        begin, code = time.perf_counter(), Code.OK
        try:
            yield
        except ServingError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            # The client has gone, or its deadline has passed.
            code = Code.CANCELLED
            raise
        except Exception as error:
            code = Code.INTERNAL
            _log.exception("%s by %s failed", method, entry_point)
            raise ServingError(code, "Internal error") from error
        finally:
            seconds = time.perf_counter() - begin
            self.request(
                model=model, method=method, entry_point=entry_point, code=code, seconds=seconds
            )

    def request(
        self, *, model: str, method: str, entry_point: str, code: Code, seconds: float
    ) -> None:
        """Counts a request that was answered.

        Args:
          model: name as asked for; may be one that does not exist.
          method: `Predict`, `GetModelMetadata`, ...
          entry_point: `GRPC` or `REST`.
          code: `Code.OK` or what went wrong.
          seconds: from arrival to answer.
        """
        with self._lock:
            if code is Code.OK:
                self._models.add(model)
            name = model if model in self._models else UNKNOWN_MODEL
            self._requests.add((name, code.name))
            self._latency.add((name, method, entry_point), seconds * 1e6)

    def batch(self, model: str, signature: str, size: int, padding: int, seconds: float) -> None:
        """Counts a run of the graph on `size` rows and `padding` more of filler."""
        with self._lock:
            self._batches.add((model, signature, str(size + padding)))
            self._padding.add((model, signature), padding)
            self._runtime.add((model, "Predict", "TF1"), seconds * 1e6)

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format, with this process' memory and CPU time."""
        return generate_latest(self._registry)

    def collect(self) -> list[Metric]:
        """The state of this moment."""
        with self._lock:
            metrics = (self._requests, self._latency, self._runtime, self._batches, self._padding)
            return [metric.family() for metric in metrics]


class _Counts:
    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self._about = (PREFIX + name, help_text, labels)
        self._values: dict[Labels, int] = defaultdict(int)

    def add(self, labels: Labels) -> None:
        self._values[labels] += 1

    def family(self) -> Metric:
        name, help_text, labels = self._about
        # Not a CounterMetricFamily: that appends `_total`, and dashboards made for TF Serving would
        # find nothing.
        family = UnknownMetricFamily(name, help_text, labels=labels)
        for values, count in self._values.items():
            family.add_metric(values, count)
        return family


class _Histogram:
    def __init__(
        self, name: str, help_text: str, labels: Sequence[str], limits: Sequence[float]
    ) -> None:
        self._about = (PREFIX + name, help_text, labels)
        self._limits = limits
        self._counts: dict[Labels, list[int]] = defaultdict(lambda: [0] * (len(limits) + 1))
        self._sums: dict[Labels, float] = defaultdict(float)

    def add(self, labels: Labels, value: float) -> None:
        self._counts[labels][bisect.bisect_left(self._limits, value)] += 1
        self._sums[labels] += value

    def family(self) -> Metric:
        name, help_text, labels = self._about
        family = HistogramMetricFamily(name, help_text, labels=labels)
        limits = [*(f"{limit:g}" for limit in self._limits), "+Inf"]
        for values, counts in self._counts.items():
            cumulated = itertools.accumulate(counts)
            family.add_metric(values, list(zip(limits, cumulated, strict=True)), self._sums[values])
        return family
