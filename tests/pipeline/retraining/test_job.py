"""The process of a retraining: what it says last is heard, whatever it leaves behind."""

import time
from pathlib import Path

from data_ingest.sources.dataset import Dataset
from pipeline.config import PipelineConfig
from pipeline.retraining.job import Child, Job
from pipeline.runs.history import RunRecord
from pipeline.runs.status import Status


def test_the_result_of_a_process_counts_though_a_child_of_it_holds_its_stdout(
    tmp_path: Path,
) -> None:
    job = Job(
        config=PipelineConfig(),
        dataset=Dataset(source="folder", base=tmp_path, inputs={}, description="images"),
        output=tmp_path,
        metadata_url=f"sqlite:///{tmp_path / 'metadata.db'}",
        run=RunRecord(run_id="run-1", state=Status.RUNNING, started=time.time()),
        token=1,
        check_drift=False,
        verbose=False,
    )
    outcome = Child("tests.pipeline.retraining.leaving_worker").run(
        job,
        log_file=tmp_path / "run.log",
        quiet=True,
        on_start=lambda pid: None,
        check=lambda: None,
    )
    assert outcome.error == ""
    assert outcome.status is Status.DONE
    assert outcome.run == job.run
