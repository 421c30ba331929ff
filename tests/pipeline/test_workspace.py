"""The output folder: one run at a time, and a link to the last one."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.workspace import Workspace, WorkspaceBusyError

_HOLD = """
import sys
from pathlib import Path
from pipeline.workspace import Workspace
with Workspace(Path(sys.argv[1])).exclusive():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_told_who_holds_the_folder(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(WorkspaceBusyError, match=f"process {holder.pid}"),
            Workspace(tmp_path).exclusive(),
        ):
            pass
        holder.kill()
        holder.wait()
        with Workspace(tmp_path).exclusive():
            pass  # freed by the kernel, although the holder could not tidy up


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
