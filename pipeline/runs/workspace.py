"""Names the files and folders under `--output`."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline.settings import MODELS_CONFIG


def new_run_id() -> str:
    """Sortable, and unique to the millisecond; for example `20260131-184501-203`."""
    return datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]


@dataclass(frozen=True)
class Workspace:
    """Paths under one output folder; nothing is created until it is needed."""

    root: Path
    model_name: str = "siamese"

    @property
    def metadata_db(self) -> Path:
        return self.root / "metadata.db"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def checkpoints(self) -> Path:
        """Training state that outlives a killed run; emptied when the training finishes."""
        return self.root / "checkpoints"

    @property
    def synthetic_data(self) -> Path:
        return self.root / "synthetic"

    @property
    def spans(self) -> Path:
        """Images that arrived in portions; see `data_ingest.spans.store`."""
        return self.root / "spans"

    @property
    def drift_reports(self) -> Path:
        return self.root / "drift"

    @property
    def serving_model(self) -> Path:
        """TF Serving's model base path: `<root>/serving_model/<model_name>/<version>`."""
        return self.root / "serving_model" / self.model_name

    @property
    def models_config(self) -> Path:
        """TF Serving's list of models: which versions are loaded, and their labels."""
        return self.root / "serving_model" / MODELS_CONFIG

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def run_dir(self, run_id: str) -> Path:
        return self.runs / run_id

    @property
    def latest_run(self) -> Path:
        return self.runs / "latest"

    def point_latest_at(self, run_id: str) -> None:
        """Makes `runs/latest` a link to the run, in one step."""
        staged = self.runs / f".latest-{os.getpid()}"
        staged.unlink(missing_ok=True)
        staged.symlink_to(run_id, target_is_directory=True)
        staged.replace(self.latest_run)
