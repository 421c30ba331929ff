"""How requests are merged into batches."""

import os
from dataclasses import dataclass, field


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
    num_batch_threads: int = field(default_factory=lambda: max(2, os.cpu_count() or 2))
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
