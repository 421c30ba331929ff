"""The process of a retraining: what it says last is heard, and why it was ended if it was."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_ingest.sources.dataset import Dataset
from pipeline.config import PipelineConfig
from pipeline.retraining.job import Child, Job
from pipeline.retraining.outcome import Outcome
from pipeline.runs.history import RunRecord
from pipeline.runs.lease import Holder, Lease
from pipeline.runs.metadata_store import parse_url
from pipeline.runs.processes import Process
from pipeline.runs.status import Status
from pipeline.settings import RetrainSettings


@pytest.fixture
def lease(tmp_path: Path) -> Lease:
    return parse_url(f"sqlite:///{tmp_path / 'metadata.db'}").lease()


def _done(
    output: Path, worker: str, *, token: int, check: Callable[[], None] = lambda: None
) -> Outcome:
    """What comes of a job under the lease with that token."""
    job = Job(
        config=PipelineConfig(retrain=RetrainSettings(lease_seconds=5)),
        dataset=Dataset(source="folder", base=output, inputs={}, description="images"),
        output=output,
        metadata_url=f"sqlite:///{output / 'metadata.db'}",
        run=RunRecord(run_id="run-1", state=Status.RUNNING, started=time.time()),
        token=token,
        check_drift=False,
        verbose=False,
    )
    return Child(f"tests.pipeline.retraining.{worker}").run(
        job, log_file=output / "run.log", quiet=True, on_start=lambda pid: None, check=check
    )


def test_the_result_of_a_process_counts_though_a_child_of_it_holds_its_stdout(
    tmp_path: Path, lease: Lease
) -> None:
    with lease.held(run_id="run-1", command="retrain") as hold:
        outcome = _done(tmp_path, "leaving_worker", token=hold.token)
    assert (outcome.status, outcome.error) == (Status.DONE, "")
    assert outcome.run is not None
    assert outcome.run.run_id == "run-1"


def test_a_process_whose_lease_is_anothers_is_ended_and_says_so(
    tmp_path: Path, lease: Lease
) -> None:
    (tmp_path / "script.json").write_text(json.dumps([{"seconds": 600}]))
    here = Process.this()
    until = time.time() + 3600

    def take_over() -> None:
        if (tmp_path / "events").exists():
            lease.change(lambda *_: (2, Holder(here, "run-2", "run", until, until)))

    lease.change(lambda *_: (1, Holder(here, "run-1", "retrain", until, until)))
    outcome = _done(tmp_path, "stub_worker", token=1, check=take_over)
    assert outcome.status is Status.INTERRUPTED
    assert outcome.error.startswith("the lease was taken over by `oneshot run` run-2")


def test_a_process_whose_lease_nobody_renews_is_ended_and_says_so(
    tmp_path: Path, lease: Lease
) -> None:
    (tmp_path / "script.json").write_text(json.dumps([{"seconds": 600}]))
    here = Process.this()
    lease.change(lambda _token, _holder, now: (1, Holder(here, "run-1", "retrain", now, now + 6)))
    outcome = _done(tmp_path, "stub_worker", token=1)
    assert outcome.status is Status.INTERRUPTED
    assert "not renewed in time" in outcome.error


def test_a_process_that_is_killed_is_told_from_one_that_fails(tmp_path: Path, lease: Lease) -> None:
    (tmp_path / "script.json").write_text(json.dumps([{"die": True}]))
    with lease.held(run_id="run-1", command="retrain") as hold:
        outcome = _done(tmp_path, "stub_worker", token=hold.token)
    assert outcome.status is Status.FAILED
    assert outcome.error == "the training process was ended by SIGKILL; out of memory?"
