"""The history of runs: what their nodes took, and which came from the cache."""

import time
from pathlib import Path

from tests.pipeline.recorded_runs import RecordedRuns


def test_cached_nodes_have_the_seconds_of_the_run_that_did_the_work(tmp_path: Path) -> None:
    runs = RecordedRuns(tmp_path, clock=time.time)
    first, again = (runs.run(data=1) for _ in range(2))
    worked, cached = (runs.history.nodes(run.run_id) for run in (first, again))
    assert not any(node.cached for node in worked)
    assert all(node.seconds > 0 for node in worked)
    assert [node.seconds for node in cached] == [node.seconds for node in worked]
    assert all(node.cached for node in cached)
