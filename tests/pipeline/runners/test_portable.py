"""Beam's job server Prism and worker pools of ours carry out what a run does by itself.

Prism is installed by `make prism`, which needs Go. One run's pool is killed, and the next run,
with another pool, goes on.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from data_ingest.errors import InputError
from pipeline.runners.beam import check_dataflow, check_job_server, told_of_job, worker_pool
from pipeline.settings import BeamSettings
from tests.pipeline import tiny

TINY = {
    **tiny.TINY,
    **tiny.TINY_GLYPHS,
    "dataset.source": "synthetic",
    # Enough for a pool to be killed while it writes them.
    "pairs.train_pairs": "20000",
}
ROOT = Path(__file__).parents[3]
STARTED_SECONDS = 300.0


@pytest.fixture(scope="module")
def prism() -> Path:
    beside = Path(sys.executable).with_name("prism")
    found = beside if beside.is_file() else shutil.which("prism")
    if not found:
        pytest.skip("Beam's job server Prism is not installed: `make prism`, which needs Go")
    return Path(found)


@contextmanager
def process(*command: str, log: Path) -> Iterator["subprocess.Popen[str]"]:
    """A group of processes, killed at the end."""
    with log.open("w") as stderr:
        started = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        kill(started)


def kill(leader: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


@contextmanager
def pool(log: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    command = [sys.executable, "-m", "pipeline.cli.main", "worker-pool", "--port=0", "--json"]
    with process(*command, log=log) as started:
        assert started.stdout is not None
        # Ends at the JSON's closing brace.
        told = "".join(iter(started.stdout.readline, "}\n")) + "}"
        yield started, f"127.0.0.1:{json.loads(told)['port']}"


@contextmanager
def job_server(prism: Path, log: Path) -> Iterator[str]:
    with worker_pool("127.0.0.1", 0) as free:
        pass
    command = [str(prism), f"--job_port={free}", "--serve_http=false"]
    with process(*command, log=log):
        yield f"127.0.0.1:{free}"


def run(output: Path, **beam: str) -> "subprocess.Popen[str]":
    settings = TINY | {f"beam.{name}": value for name, value in beam.items()}
    command = [sys.executable, "-m", "pipeline.cli.main", "run", "--output", str(output)]
    return subprocess.Popen(
        [*command, *tiny.as_options(settings)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def records(output: Path) -> dict[str, bytes]:
    (examples,) = output.glob("artifacts/PairExampleGen/examples/*")
    return {
        path.relative_to(examples).as_posix(): path.read_bytes()
        for path in sorted(examples.rglob("*"))
        if path.is_file()
    }


def metrics(output: Path) -> dict[str, Any]:
    """Figures of the last run, by path."""
    found: dict[str, Any] = json.loads((output / "runs/latest/summary.json").read_bytes())
    kept = {key: found[key] for key in ("metrics", "images", "per_group", "blessed")}
    return dict(leaves(kept, ""))


def leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list):
        for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(part, f"{name}/{key}")
    else:
        yield name, tree


def wait_for(pattern: str, folder: Path, meanwhile: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + STARTED_SECONDS
    while not any(folder.glob(pattern)):
        assert meanwhile.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.timeout(1800)
def test_a_pool_is_killed_and_the_next_run_goes_on_to_what_a_local_one_gives(
    prism: Path, tmp_path: Path
) -> None:
    local, portable = tmp_path / "local", tmp_path / "portable"
    alone = run(local)
    _, told = alone.communicate()
    assert alone.returncode == 0, told
    with job_server(prism, tmp_path / "prism.log") as endpoint:
        with pool(tmp_path / "first.log") as (first, address):
            started = run(portable, runner="portable", job_endpoint=endpoint, worker_pool=address)
            wait_for("artifacts/PairExampleGen/examples/*/blocks/*", portable, started)
            kill(first)
            _, told = started.communicate()
        assert started.returncode == 1, told
        assert f"oneshot: the job server {endpoint} " in told
        assert address in told
        with pool(tmp_path / "second.log") as (_, address):
            next_run = run(portable, runner="portable", job_endpoint=endpoint, worker_pool=address)
            _, told = next_run.communicate()
        assert next_run.returncode == 0, told
        # Every node of Beam's had a worker of its own.
        assert (tmp_path / "second.log").read_text().count("Worker ") == 3
    assert records(portable) == records(local)
    # A network rounds otherwise in a batch of another size.
    assert metrics(portable) == pytest.approx(metrics(local), abs=1e-5)


def test_a_job_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runners.beam._ANSWER_SECONDS", 0.2)
    with worker_pool("127.0.0.1", 0) as free:
        pass
    settings = BeamSettings(
        runner="portable", job_endpoint=f"127.0.0.1:{free}", worker_pool="127.0.0.1:1"
    )
    with pytest.raises(InputError, match=rf"job_endpoint: no job server .*127\.0\.0\.1:{free}"):
        check_job_server(settings)


def test_a_pool_refuses_a_port_that_is_taken() -> None:
    with worker_pool("127.0.0.1", 0) as port, pytest.raises(InputError, match=f":{port}"):  # noqa: SIM117
        with worker_pool("127.0.0.1", port):
            pass


class LostError(grpc.RpcError):
    def details(self) -> str:
        return "Socket closed"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LostError(), r"job server js:1 was lost \(Socket closed\)"),
        (
            RuntimeError("Pipeline job-1 failed in state FAILED: bundle failed:Traceback\nOops: x"),
            "job server js:1 gave up: Oops: x",
        ),
        (RuntimeError("something else"), None),
    ],
)
def test_a_job_servers_failure_is_a_sentence(error: Exception, told: str | None) -> None:
    settings = BeamSettings(runner="portable", job_endpoint="js:1", worker_pool="pool:2")
    said = told_of_job([ValueError(), error], settings)
    assert said is None if told is None else re.search(rf"{told}\..*pool:2", str(said))


def test_dataflows_options_are_checked_without_a_network() -> None:
    options = {
        "project": "project-1",
        "region": "europe-west4",
        "temp_location": "gs://bucket/temp",
        "worker_image": "registry/oneshot-beam:1",
    }

    def settings(**changed: Any) -> BeamSettings:
        return BeamSettings.model_validate({"runner": "dataflow", **options, **changed})

    check_dataflow(settings())
    for changed, said in (
        ({"project": "P"}, "Invalid Project ID"),
        ({"temp_location": "/tmp/here"}, "Invalid GCS path"),
        ({"temp_location": "gs://BUCKET/temp"}, "Invalid GCS bucket"),
        ({"extra_args": ["--num_workers=-1"]}, "num_workers"),
    ):
        with pytest.raises(InputError, match=said):
            check_dataflow(settings(**changed))
