"""The output folder: a link to the last run."""

from pathlib import Path

from pipeline.runs.workspace import Workspace


def test_latest_points_at_the_last_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for run_id in ("one", "two"):
        workspace.run_dir(run_id).mkdir(parents=True)
        workspace.point_latest_at(run_id)
        assert workspace.latest_run.resolve() == workspace.run_dir(run_id).resolve()
    assert sorted(path.name for path in workspace.runs.iterdir()) == [
        "latest",
        "one",
        "two",
    ]
