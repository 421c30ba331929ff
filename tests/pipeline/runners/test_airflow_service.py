"""How the demonstration's Airflow comes up and ends, without Airflow."""

import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.airflow_demo.service import (
    Airflow,
    AirflowError,
    nothing_left_behind,
    wait_until_ready,
)

# Its parent is gone at once, it has a session of its own, and it does not heed SIGTERM.
_STUBBORN = """
setsid sh -c 'trap "" TERM; echo $$ > "$0"; mv "$0" "$1"; while :; do sleep 1; done' "$1.new" "$1" &
"""


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("reason", [SystemExit, KeyboardInterrupt, AirflowError])
def test_no_process_is_left_behind_however_it_ends(
    tmp_path: Path, reason: type[BaseException]
) -> None:
    file = tmp_path / "pid"

    def started() -> int:
        subprocess.run(["sh", "-c", _STUBBORN, "sh", str(file)], check=True)
        while not file.exists():
            time.sleep(0.05)
        return int(file.read_text())

    try:
        with nothing_left_behind(grace_seconds=0.5):
            pid = started()
            assert is_alive(pid)
            raise reason
    except reason:
        assert not is_alive(pid)


def test_processes_from_before_are_left_alone() -> None:
    with subprocess.Popen(["sleep", "600"]) as earlier:
        with nothing_left_behind():
            pass
        assert earlier.poll() is None
        earlier.kill()


def test_waiting_ends_with_a_component_that_ends(tmp_path: Path) -> None:
    scheduler = subprocess.Popen(["true"])
    with (
        closing(Airflow("http://127.0.0.1:1", {"scheduler": scheduler}, tmp_path)) as airflow,
        pytest.raises(AirflowError, match=f"scheduler ended: see {tmp_path}/scheduler.log"),
    ):
        airflow.wait_for(lambda: None, pause=0.05)


def test_components_that_work_a_lot_and_never_come_up_are_given_up(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            with (
                closing(Airflow(url, {"scheduler": busy}, tmp_path)) as airflow,
                pytest.raises(AirflowError, match="did not come up"),
            ):
                wait_until_ready(airflow, "some_dag", pids={busy.pid}, most=0.5)
        finally:
            busy.kill()
            busy.wait()
