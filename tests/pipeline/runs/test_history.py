"""The history of runs: seconds and caches of nodes, and what it says where it cannot be written."""

import errno
import time
from pathlib import Path
from unittest.mock import patch

import ml_metadata
import pytest
from ml_metadata.errors import DataLossError, InternalError

from pipeline.runs.history import RunHistory, RunRecord
from pipeline.runs.metadata_store import parse_url
from pipeline.runs.status import Status
from tests.pipeline.recorded_runs import RecordedRuns


def test_a_full_disk_is_named_and_other_errors_are_as_they_are(tmp_path: Path) -> None:
    history = RunHistory(parse_url(f"sqlite:///{tmp_path}/metadata.db").connection())
    run = RunRecord("1", Status.RUNNING, 0.0)
    full = InternalError("Error when executing query: database or disk is full query:  UPDATE")
    with (
        patch.object(ml_metadata.MetadataStore, "put_contexts", side_effect=full),
        pytest.raises(OSError, match="no space left for ML Metadata; free some") as raised,
    ):
        history.record(run)
    assert raised.value.errno == errno.ENOSPC
    other = DataLossError("something else")
    with (
        patch.object(ml_metadata.MetadataStore, "put_contexts", side_effect=other),
        pytest.raises(DataLossError),
    ):
        history.record(run)


def test_cached_nodes_have_the_seconds_of_the_run_that_did_the_work(tmp_path: Path) -> None:
    runs = RecordedRuns(tmp_path, clock=time.time)
    first, again = (runs.run(data=1) for _ in range(2))
    worked, cached = (runs.history.nodes(run.run_id) for run in (first, again))
    assert not any(node.cached for node in worked)
    assert all(node.seconds > 0 for node in worked)
    assert [node.seconds for node in cached] == [node.seconds for node in worked]
    assert all(node.cached for node in cached)
