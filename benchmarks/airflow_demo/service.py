"""A real Airflow on this machine, for the demonstration and the tests.

Scheduler, DAG processor and API server run from `.venv-airflow` and keep everything in one folder,
their metadata in SQLite. Everyone who reaches the server is an administrator, so it listens on the
loopback interface only: not for production.
"""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

_CHECKOUT = Path(__file__).resolve().parents[2]
_COMPONENTS = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
}
_START_SECONDS = 180.0
_STOP_SECONDS = 10.0


class AirflowError(RuntimeError):
    """Airflow did not start, or one of its processes ended; the message names its log."""


class Airflow:
    """A running Airflow with the retraining DAG; made by `running_airflow`.

    Attributes:
      url: where its pages and its REST API are.
      pids: process by component.
    """

    def __init__(self, url: str, pids: Mapping[str, int]) -> None:
        self.url = url
        self.pids = dict(pids)
        self._client = httpx.Client(base_url=url, timeout=30)

    def get(self, path: str, **parameters: Any) -> Any:
        """What the REST API answers to a GET of `/api/v2/<path>`."""
        return self._request("GET", path, params=parameters)

    def trigger(self, dag_id: str, **params: Any) -> str:
        """Starts a run of the DAG with these parameters and returns its run id."""
        body = {"logical_date": None, "conf": params}
        run_id: str = self._request("POST", f"dags/{dag_id}/dagRuns", json=body)["dag_run_id"]
        return run_id

    def pause(self, dag_id: str, *, paused: bool) -> None:
        """Stops or lets go on the schedule; a run that has begun goes on."""
        self._request("PATCH", f"dags/{dag_id}", json={"is_paused": paused})

    def close(self) -> None:
        self._client.close()

    def _request(self, method: str, path: str, **arguments: Any) -> Any:
        if "authorization" not in self._client.headers:
            token = self._client.get("/auth/token").raise_for_status().json()["access_token"]
            self._client.headers["authorization"] = f"Bearer {token}"
        response = self._client.request(method, f"/api/v2/{path}", **arguments)
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
      heartbeat_timeout: seconds without a sign of life after which a task counts as dead.
      port: of the pages; None takes a free one.

    Raises:
      AirflowError: a component ended or did not come up.
    """
    program = _CHECKOUT / ".venv-airflow" / "bin" / "airflow"
    if not program.exists():
        raise AirflowError(f"{program}: not found; `make airflow` installs Airflow")
    _link(home / "dags" / "oneshot_retraining.py", "airflow_dag.py")
    _link(home / "plugins" / "oneshot_reports.py", "airflow_reports.py")
    port = port or _free_port()
    variables = _environ(home, port=port, heartbeat_timeout=heartbeat_timeout) | dict(environ)
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    with (logs / "migrate.log").open("wb") as log:
        migrate = [str(program), "db", "migrate"]
        if subprocess.run(migrate, env=variables, stdout=log, stderr=log).returncode:
            raise AirflowError(f"Airflow could not make its database: see {log.name}")
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
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
        pids = {name: process.pid for name, process in processes.items()}
        with closing(Airflow(f"http://127.0.0.1:{port}", pids)) as airflow:
            _wait_until_ready(airflow, processes, dag_id=dag_id, logs=logs)
            yield airflow
    finally:
        _stop(processes.values())


def _environ(home: Path, *, port: int, heartbeat_timeout: int) -> dict[str, str]:
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
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(heartbeat_timeout),
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
        # The first request waits while the server reads its providers.
        "WORKERS__EXECUTION_API_TIMEOUT": "60",
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


def _wait_until_ready(
    airflow: Airflow,
    processes: "Mapping[str, subprocess.Popen[bytes]]",
    *,
    dag_id: str,
    logs: Path,
) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                raise AirflowError(f"Airflow's {name} ended: see {logs / name}.log")
        try:
            health = airflow.get("monitor/health")
            if health["scheduler"]["status"] == "healthy":
                airflow.get(f"dags/{dag_id}")
                return
        except httpx.HTTPError as error:
            if time.monotonic() > deadline:
                raise AirflowError(f"Airflow did not come up ({error}): see {logs}") from None
        time.sleep(0.5)


def _stop(processes: "Iterable[subprocess.Popen[bytes]]") -> None:
    """Ends the components and their children. Tasks end themselves when their worker is gone."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
