"""Tells what became of a retraining: in a line, as JSON, and as events for notices."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.runs.history import RunRecord
from pipeline.runs.status import Status
from pipeline.settings import Event


@dataclass(frozen=True)
class Outcome:
    """What became of a retraining, or of one try of it.

    Attributes:
      status: how it ended.
      span: the span it was for; None if none was chosen.
      run: the record of its last try; of an earlier run where that was enough; None if there is
        none.
      error: what is wrong, for people; empty if nothing is.
    """

    status: Status
    span: int | None = None
    run: RunRecord | None = None
    error: str = ""

    def __str__(self) -> str:
        """A line for people."""
        status = self.status.text
        parts = [status if self.span is None else f"span {self.span}: {status}"]
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
        """For `--json` and logs: the record's fields, and the retraining's own."""
        run = {} if self.run is None else asdict(self.run)
        return {"status": self.status, **run, "span": self.span, "error": self.error}

    def to_json(self) -> str:
        """One line, from which `from_json` makes the same outcome."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> "Outcome":
        values = json.loads(line)
        run = values["run"] and RunRecord.from_dict(values["run"])
        return Outcome(Status(values["status"]), values["span"], run, values["error"])

    def events(self) -> Iterator[Event]:
        """What people are to be told of."""
        run, event = self.run, self.status.event
        if self.status.something_happened and run is not None and run.drift:
            yield "drift"
        if event == "failed" or (event is not None and run is not None and run.is_whole):
            yield event
