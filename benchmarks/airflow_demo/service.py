"""A real Airflow on this machine, for the demonstration and the tests.

Scheduler, DAG processor and API server run from `.venv-airflow` and keep everything in one folder,
their metadata in SQLite. Everyone who reaches the server is an administrator, so it listens on the
loopback interface only: not for production.
"""

import ctypes
import os
import resource
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

_CHECKOUT = Path(__file__).resolve().parents[2]
_COMPONENTS = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
}
_PATIENCE: Final = 50.0
"""What the components may take to come up, in CPU time; one start of Airflow's program is 1."""
_REQUESTS: Final = 30
"""How often one is made: SQLite is locked while others write, and Airflow 3.3 cannot list events
while the run that one of them has created is still queued."""
_STOP_SECONDS: Final = 10.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_Found = TypeVar("_Found")


class AirflowError(RuntimeError):
    """Airflow did not start, or one of its processes ended; the message names its log."""


class Airflow:
    """A running Airflow with the retraining DAG; made by `running_airflow`.

    Attributes:
      url: where its pages and its REST API are.
    """

    def __init__(
        self, url: str, processes: "Mapping[str, subprocess.Popen[bytes]]", logs: Path
    ) -> None:
        self.url = url
        self._processes = processes
        self._logs = logs
        self._client = httpx.Client(base_url=url, timeout=300)

    def wait_for(self, probe: Callable[[], _Found | None], *, pause: float = 0.5) -> _Found:
        """Asks until the answer is something, for as long as Airflow runs; returns the answer.

        Raises:
          AirflowError: a component ended.
        """
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise AirflowError(f"Airflow's {name} ended: see {self._logs / name}.log")
            if found := probe():
                return found
            time.sleep(pause)

    def get(self, path: str, **parameters: Any) -> Any:
        """What the REST API answers to a GET of `/api/v2/<path>`."""
        return self._request("GET", path, params=parameters)

    def trigger(self, dag_id: str, **params: Any) -> str:
        """Starts a run of the DAG with these parameters and returns its run id."""
        body = {"logical_date": None, "conf": params}
        run_id: str = self._request("POST", f"dags/{dag_id}/dagRuns", json=body)["dag_run_id"]
        return run_id

    def announce(self, asset: str, **extra: Any) -> None:
        """Makes an event of an asset."""
        (found,) = self.get("assets", name_pattern=asset)["assets"]
        self._request("POST", "assets/events", json={"asset_id": found["id"], "extra": extra})

    def asset_events(self) -> list[dict[str, Any]]:
        """The events of all assets, the oldest first."""
        events: list[dict[str, Any]] = self.get("assets/events", order_by="timestamp")[
            "asset_events"
        ]
        return events

    def pause(self, dag_id: str, *, paused: bool) -> None:
        """Stops or lets go on the schedule; a run that has begun goes on."""
        self._request("PATCH", f"dags/{dag_id}", json={"is_paused": paused})

    def close(self) -> None:
        self._client.close()

    def _request(self, method: str, path: str, **arguments: Any) -> Any:
        if "authorization" not in self._client.headers:
            token = self._client.get("/auth/token").raise_for_status().json()["access_token"]
            self._client.headers["authorization"] = f"Bearer {token}"
        for _ in range(_REQUESTS):
            response = self._client.request(method, f"/api/v2/{path}", **arguments)
            if response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                break
            time.sleep(1)
        return response.raise_for_status().json()


@contextmanager
def running_airflow(
    home: Path,
    *,
    dag_id: str,
    environ: Mapping[str, str],
    heartbeat_timeout: int = 300,
    port: int | None = None,
) -> Iterator[Airflow]:
    """Starts Airflow and waits until it has read the DAG; ends it, and all it started, at the end.

    Args:
      home: Airflow's folder: database, logs, links to the DAG and the plugin.
      dag_id: the DAG to wait for.
      environ: added to this process' environment, for example ONESHOT_AIRFLOW_OUTPUT.
      heartbeat_timeout: seconds without a sign of life after which a task counts as dead; more
        on a slow or busy machine.
      port: of the pages; None takes a free one.

    Raises:
      AirflowError: a component ended or did not come up, or the DAG cannot be read.
    """
    program = _CHECKOUT / ".venv-airflow" / "bin" / "airflow"
    if not program.exists():
        raise AirflowError(f"{program}: not found; `make airflow` installs Airflow")
    _link(home / "dags" / "oneshot_retraining.py", "airflow_dag.py")
    _link(home / "plugins" / "oneshot_reports.py", "airflow_reports.py")
    port = port or _free_port()
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with nothing_left_behind():
        variables = _environ(home, port=port) | dict(environ)
        begin, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        with (logs / "migrate.log").open("wb") as log:
            migrate = [str(program), "db", "migrate"]
            if subprocess.run(migrate, env=variables, stdout=log, stderr=log).returncode:
                raise AirflowError(f"Airflow could not make its database: see {log.name}")
        # How fast this machine is now, with all else that it does.
        seconds, now = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        variables["AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT"] = str(
            round(max(heartbeat_timeout, 3 * seconds))
        )
        for name, arguments in _COMPONENTS.items():
            with (logs / f"{name}.log").open("wb") as log:
                # It ends with this process, even where that is killed.
                tied = ["setpriv", "--pdeathsig", "TERM", str(program), *arguments]
                processes[name] = subprocess.Popen(
                    tied,
                    env=variables,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        with closing(Airflow(f"http://127.0.0.1:{port}", processes, logs)) as airflow:
            wait_until_ready(
                airflow,
                dag_id,
                pids={process.pid for process in processes.values()},
                most=_PATIENCE * cpu_seconds,
            )
            yield airflow


def _environ(home: Path, *, port: int) -> dict[str, str]:
    """Variables of a small Airflow that talks to nobody outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    url = f"http://127.0.0.1:{port}"
    options = {
        "API__BASE_URL": url,
        "API__HOST": "127.0.0.1",
        "API__PORT": str(port),
        "API__WORKERS": "1",
        "API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__PARALLELISM": "2",
        "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
        "DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "DAG_PROCESSOR__STALE_DAG_THRESHOLD": "600",
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.25",
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
        # The first request waits while the server reads its providers.
        "WORKERS__EXECUTION_API_TIMEOUT": "300",
        "USAGE_DATA_COLLECTION__ENABLED": "False",
    }
    # The program's folder first: Airflow starts itself by name.
    path = f"{_CHECKOUT / '.venv-airflow' / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return {
        **kept,
        "PATH": path,
        "AIRFLOW_HOME": str(home),
        **{f"AIRFLOW__{name}": value for name, value in options.items()},
    }


def _link(link: Path, module: str) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(_CHECKOUT / "pipeline" / "runners" / module)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def wait_until_ready(airflow: Airflow, dag_id: str, *, pids: set[int], most: float) -> None:
    """Waits for the scheduler and the DAG while the components use less than `most` CPU seconds."""

    def is_ready() -> bool:
        try:
            if airflow.get("monitor/health")["scheduler"]["status"] == "healthy":
                for error in airflow.get("importErrors")["import_errors"]:
                    raise AirflowError(f"{error['filename']}: {error['stack_trace']}")
                airflow.get(f"dags/{dag_id}")
                return True
        except httpx.HTTPError as error:
            if _cpu_seconds(pids) > most:
                raise AirflowError(f"Airflow did not come up: {error}") from None
        return False

    airflow.wait_for(is_ready)


def _cpu_seconds(pids: set[int]) -> float:
    """CPU time of processes, their children and those of their children that have ended."""
    stats = _stats()
    family = pids | _descendants(pids, stats)
    ticks = sum(int(tick) for pid in family & stats.keys() for tick in stats[pid][11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def _stats() -> dict[int, list[str]]:
    """By process, what /proc/<pid>/stat has after its name: state, parent, ..."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    return stats


def _descendants(pids: set[int], stats: Mapping[int, list[str]]) -> set[int]:
    children = {pid for pid, stat in stats.items() if int(stat[1]) in pids} - pids
    return children | _descendants(children, stats) if children else children


@contextmanager
def nothing_left_behind(grace_seconds: float = _STOP_SECONDS) -> Iterator[None]:
    """Ends all processes that were started in it, and theirs: first with SIGTERM, then SIGKILL.

    Those of a killed parent become this process's children, so that they are found, too.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    me = {os.getpid()}
    kept = _descendants(me, _stats())
    try:
        yield
    finally:
        told: set[int] = set()
        deadline = time.monotonic() + grace_seconds
        while left := _descendants(me, _stats()) - kept:
            late = time.monotonic() > deadline
            for pid in left:
                with suppress(ProcessLookupError):
                    if late or pid not in told:
                        os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            told |= left
            time.sleep(0.1)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)
