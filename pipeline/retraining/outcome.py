"""What became of a retraining: for people, for programs, and for whoever is to be told."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.runs.history import RunRecord
from pipeline.settings import Event

Status = Literal[
    "done",
    "not blessed",
    "nothing new",
    "already trained",
    "busy",
    "blocked",
    "skipped",
    "failed",
    "refused",
    "timeout",
    "replaced",
]


@dataclass(frozen=True)
class Outcome:
    """What became of a retraining.

    Attributes:
      status: in a word; nothing was done where it is `nothing new`, `already trained` or `busy`.
      span: the span it was for; None if none was chosen.
      run: the record of its last try; of an earlier run where that was enough; None if there is
        none.
      error: what is wrong, for people; empty if nothing is.
    """

    status: Status
    span: int | None = None
    run: RunRecord | None = None
    error: str = ""

    @property
    def something_happened(self) -> bool:
        """Whether whoever is responsible wants to know of it."""
        return self.status not in ("nothing new", "already trained", "busy", "skipped")

    def __str__(self) -> str:
        """A line for people."""
        parts = [self.status if self.span is None else f"span {self.span}: {self.status}"]
        run = self.run
        if run is not None and run.is_judged:
            if run.accuracy is not None:
                parts.append(f"{run.accuracy_metric} {100 * run.accuracy:.1f} %")
            if run.pushed_version is not None:
                parts.append(f"version {run.pushed_version}")
            if run.promoted:
                parts.append(run.label)
        return ", ".join(parts)

    def document(self) -> dict[str, Any]:
        """For `--json` and logs."""
        run = {} if self.run is None else asdict(self.run)
        return {"status": self.status, **run, "span": self.span, "error": self.error}

    def events(self) -> Iterator[Event]:
        """What people are to be told of."""
        if not self.something_happened:
            return
        run = self.run
        if run is not None and run.drift:
            yield "drift"
        if self.status in ("failed", "refused", "timeout"):
            yield "failed"
        elif run is not None and run.is_whole and run.blessed is not None:
            yield "blessed" if run.blessed else "not_blessed"
