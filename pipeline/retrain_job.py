"""What `oneshot retrain` hands to the process that does the work, and what comes back."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data_ingest.dataset import Dataset
from pipeline.config import MetadataSettings, PipelineConfig
from pipeline.history import RunRecord


@dataclass(frozen=True)
class Job:
    """One try of a retraining."""

    config: PipelineConfig
    dataset: Dataset
    output: Path
    metadata_url: str
    """With its password: it is handed over through a pipe, and neither logged nor listed."""
    run: RunRecord
    token: int
    """Of the lease under which the job is done."""
    check_drift: bool
    """Whether the span is first compared with those before it."""
    verbose: bool

    def to_json(self) -> str:
        """One line."""
        config = self.config.model_copy(update={"metadata": MetadataSettings()})
        values = {
            "config": config.model_dump(mode="json"),
            "dataset": {**asdict(self.dataset), "base": str(self.dataset.base)},
            "output": str(self.output),
            "metadata_url": self.metadata_url,
            "run": asdict(self.run),
            "token": self.token,
            "check_drift": self.check_drift,
            "verbose": self.verbose,
        }
        return json.dumps(values)

    @staticmethod
    def from_json(line: str) -> "Job":
        """Inverse of `to_json`."""
        values: dict[str, Any] = json.loads(line)
        dataset = values["dataset"]
        return Job(
            config=PipelineConfig.model_validate(values["config"]),
            dataset=Dataset(**{**dataset, "base": Path(dataset["base"])}),
            output=Path(values["output"]),
            metadata_url=values["metadata_url"],
            run=RunRecord.from_dict(values["run"]),
            token=values["token"],
            check_drift=values["check_drift"],
            verbose=values["verbose"],
        )


@dataclass(frozen=True)
class Result:
    """How a job ended.

    Attributes:
      state: `refused` is bad input, which trying again does not change; `blocked` and `skipped` are
        what drift, or its absence, led to; `killed` ended without a word.
      run: the record of the run as it is in the history; None where it did not get that far.
      error: what is wrong, for people; empty if nothing is.
      drift: what was found, for people; empty if nothing was.
    """

    state: Literal["done", "refused", "failed", "killed", "blocked", "skipped"]
    run: RunRecord | None = None
    error: str = ""
    drift: str = ""

    @property
    def worth_another_try(self) -> bool:
        """Whether it may end otherwise the next time."""
        return self.state in ("failed", "killed")

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> "Result":
        """Inverse of `to_json`."""
        values = json.loads(line)
        run = values.pop("run")
        return Result(**values, run=None if run is None else RunRecord.from_dict(run))
