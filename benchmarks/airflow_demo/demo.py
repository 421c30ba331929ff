"""`make airflow-demo`: Airflow retrains on three small deliveries, each as it lands.

An event of the asset `oneshot_spans` starts each retraining; a model that is pushed is an event of
`oneshot_model`. The images are generated glyphs. The second delivery is bad: its classes are mixed
up, so its model must not be promoted. During the third training Airflow's worker is killed
(SIGKILL), and the retry completes what it had begun.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final

import httpx
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.airflow_demo.service import Airflow, AirflowError, running_airflow
from data_ingest.sources.glyphs import write_glyphs
from pipeline.runs.workspace import Workspace, new_run_id
from serving.saved_model.versions import versions

_BAR_CELLS: Final = 28
_TOLD: Final = ("span", "pushed_version", "label", "accuracy_metric", "accuracy")
_DAG: Final = "oneshot_retraining"
_ALPHABETS: Final = 4
_SPANS: Final = {1: "good", 2: "bad: classes mixed up", 3: "good; the worker is killed"}
_BAD, _CRASH = 2, 3
_CONFIG: Final[dict[str, Any]] = {
    "pairs": {
        "train_pairs": 200,
        "eval_pairs": 80,
        "verification_pairs": 2000,
        "ways": [5],
        "within_trials": 60,
        "between_trials": 60,
    },
    "train": {
        "widths": [8, 16, 16],
        "embedding_size": 32,
        "image_size": 28,
        "steps": 160,
        "validate_every": 80,
        "checkpoint_every": 5,
        "classes_per_batch": 8,
        "images_per_class": 2,
    },
    # Good spans have 0.80 to 0.92, the mixed one 0.66 to 0.69.
    "evaluate": {"thresholds": {"auc": {"min": 0.75}}},
    "gate": {"latency_requests": 10},
    "retrain": {"window": 1},
    "push": {"server_poll_seconds": 0},
}


@dataclass(frozen=True)
class Demonstration:
    """What came of it.

    Attributes:
      tries: every try of every task of the runs that trained on a span.
      events: of the two assets, the oldest first, as Airflow's API has them.
      served: versions in TF Serving's folder after each span.
      reports: link to the report by span, as Airflow's pages have it.
      states: state of each task by span.
    """

    tries: "list[TaskTry]"
    events: list[dict[str, Any]]
    served: dict[int, list[int]]
    reports: dict[int, str | None]
    states: dict[int, dict[str, str]]


def demonstrate(
    folder: Path,
    *,
    port: int | None = None,
    tell: Callable[[str], None],
    show: Callable[[Airflow, Demonstration], None],
) -> None:
    """Lets Airflow train on the three spans, one after the other, as they land.

    Args:
      folder: must not exist.
      port: of Airflow's pages; None takes a free one.
      tell: called with a line for people whenever something happened.
      show: called with the result while Airflow still runs.

    Raises:
      AirflowError: Airflow, or a program that it started, did not do what it should.
    """
    folder.mkdir(parents=True)
    workspace = Workspace(folder / "output")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(_CONFIG, sort_keys=False))
    environ = {
        "ONESHOT_AIRFLOW_OUTPUT": str(workspace.root),
        "ONESHOT_AIRFLOW_CONFIG": str(config),
        "ONESHOT_AIRFLOW_SCHEDULE": "assets",
        "ONESHOT_AIRFLOW_RETRY_SECONDS": "5",
    }
    served = {}
    runs = {}
    with running_airflow(
        folder / "airflow", dag_id=_DAG, environ=environ, heartbeat_timeout=15, port=port
    ) as airflow:
        tell(f"Airflow's pages: {airflow.url}")
        for span, description in _SPANS.items():
            delivery = write_delivery(folder / f"delivery-{span}.zip", span, mixed=span == _BAD)
            _ingest(delivery, workspace, config)
            airflow.announce("oneshot_spans", span=span)
            tell(f"span {span} has landed ({description})")
            runs[span] = _run_of_span(airflow, span)
            if span == _CRASH:
                worker = _kill_worker(airflow, runs[span], workspace)
                tell(f"killed Airflow's worker, process {worker}, during the training")
            state = _state_at_end(airflow, runs[span])
            served[span] = versions(workspace.serving_model)
            tell(f"span {span}: Airflow's run is a {state}; served: {served[span]}")
        instances = {span: _instances(airflow, run_id) for span, run_id in runs.items()}
        shown = Demonstration(
            tries=task_tries(airflow, _DAG, list(runs.values())),
            events=airflow.asset_events(),
            served=served,
            reports={
                span: airflow.get(f"dags/{_DAG}/dagRuns/{run_id}/taskInstances/push/links")[
                    "extra_links"
                ]["Report"]
                for span, run_id in runs.items()
            },
            states={
                span: {name: str(task["state"]) for name, task in tasks.items()}
                for span, tasks in instances.items()
            },
        )
        show(airflow, shown)


def write_delivery(path: Path, span: int, *, mixed: bool) -> Path:
    """Writes a zip of generated alphabets that no other span has; `mixed`: in wrong classes."""
    write_glyphs(
        path,
        alphabets=_ALPHABETS,
        characters=8,
        writers=8,
        seed=7,
        first_alphabet=1 + _ALPHABETS * (span - 1),
    )
    if mixed:
        with zipfile.ZipFile(path) as archive:
            images = {name: archive.read(name) for name in archive.namelist()}
        contents = list(images.values())
        random.Random(span).shuffle(contents)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in zip(images, contents, strict=True):
                archive.writestr(name, content)
    return path


def _ingest(delivery: Path, workspace: Workspace, config: Path) -> None:
    program = Path(sys.executable).with_name("oneshot")
    command = [str(program), "ingest", "--next", "--config", str(config)]
    done = subprocess.run(
        [*command, "--output", str(workspace.root), str(delivery)], capture_output=True, text=True
    )
    if done.returncode:
        raise AirflowError(f"{delivery} did not land: {done.stderr}")


def _run_of_span(airflow: Airflow, span: int) -> str:
    """The run whose first stage chose this span."""

    def find() -> str | None:
        for run in airflow.get(f"dags/{_DAG}/dagRuns", order_by="-start_date")["dag_runs"]:
            run_id = str(run["dag_run_id"])
            if stage_result(airflow, _DAG, run_id, "data").get("span") == span:
                return run_id
            if run["state"] == "failed":
                raise AirflowError(f"Airflow's run {run_id} failed: see its log")
        return None

    return airflow.wait_for(find)


def _kill_worker(airflow: Airflow, run_id: str, workspace: Workspace) -> int:
    """Kills the process that looks after the training task, once there is a checkpoint."""

    def training() -> dict[str, Any] | None:
        task = _instances(airflow, run_id)["train"]
        if task["state"] not in (None, "scheduled", "queued", "running"):
            raise AirflowError("the training ended before Airflow's worker could be killed")
        return task if task["state"] == "running" and task["pid"] else None

    process = Path(f"/proc/{airflow.wait_for(training)['pid']}")
    airflow.wait_for(
        lambda: list(workspace.checkpoints.rglob("checkpoint")) or not process.exists(), pause=0.05
    )
    try:
        stat = (process / "stat").read_text()
    except FileNotFoundError:
        raise AirflowError("the training ended without a checkpoint: see its log") from None
    worker = int(stat.rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    return worker


def _state_at_end(airflow: Airflow, run_id: str) -> str:
    def ended() -> str | None:
        state = str(airflow.get(f"dags/{_DAG}/dagRuns/{run_id}")["state"])
        return state if state in ("success", "failed") else None

    return airflow.wait_for(ended)


def _instances(airflow: Airflow, run_id: str) -> dict[str, dict[str, Any]]:
    found = airflow.get(f"dags/{_DAG}/dagRuns/{run_id}/taskInstances")["task_instances"]
    return {instance["task_id"]: instance for instance in found}


@dataclass(frozen=True)
class TaskTry:
    """One try of one task. `state` is Airflow's: success, skipped, failed, up_for_retry, ..."""

    run_id: str
    span: int | None  # None where there was nothing new
    task: str
    attempt: int
    state: str
    start: datetime
    end: datetime | None

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds() if self.end else 0.0


def task_tries(airflow: Airflow, dag_id: str, run_ids: Sequence[str]) -> list[TaskTry]:
    """All tries of these runs that have begun, by start."""
    tries = []
    for run_id in run_ids:
        prefix = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        result = stage_result(airflow, dag_id, run_id, "data")
        for instance in airflow.get(prefix)["task_instances"]:
            task = instance["task_id"]
            for record in airflow.get(f"{prefix}/{task}/tries")["task_instances"]:
                if record["start_date"] is not None:
                    tries.append(_task_try(record, span=result.get("span")))
    return sorted(tries, key=lambda each: each.start)


def stage_result(airflow: Airflow, dag_id: str, run_id: str, task: str) -> dict[str, Any]:
    """The JSON that a stage's program printed; {} for a stage that was skipped or failed."""
    entry = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task}/xcomEntries/return_value"
    try:
        value = airflow.get(entry, deserialize=False, stringify=False)["value"]
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return {}
        raise
    return value if isinstance(value, dict) else {}


def timeline_table(tries: Sequence[TaskTry]) -> Table:
    """The tries as a table with a bar each, all on one scale of time."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("span", "task", "try", "state", "start", "time"):
        right = heading in ("span", "try", "start", "time")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    table.add_column("", no_wrap=True)
    begin = min(each.start for each in tries)
    total = max((each.end or each.start) - begin for each in tries).total_seconds() or 1.0
    previous = tries[0].run_id
    for each in tries:
        if each.run_id != previous:
            table.add_section()
            previous = each.run_id
        offset = (each.start - begin).total_seconds()
        first = int(_BAR_CELLS * offset / total)
        cells = max(1, round(_BAR_CELLS * each.seconds / total))
        table.add_row(
            "" if each.span is None else str(each.span),
            each.task,
            str(each.attempt),
            each.state,
            f"{offset:.0f} s",
            f"{each.seconds:.0f} s",
            " " * first + ("█" if each.state == "success" else "░") * cells,
        )
    return table


def _task_try(record: dict[str, Any], *, span: int | None) -> TaskTry:
    end = record["end_date"]
    return TaskTry(
        run_id=record["dag_run_id"],
        span=span,
        task=record["task_id"],
        attempt=record["try_number"],
        state=record["state"] or "",
        start=_time(record["start_date"]),
        end=_time(end) if end else None,
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="airflow-demo", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("output/airflow-demo"), help="folder (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=8080, help="of Airflow's pages (%(default)s)")
    parser.add_argument(
        "--stay", action="store_true", help="leave Airflow running afterwards, until Ctrl-C"
    )
    arguments = parser.parse_args()
    folder = arguments.output.absolute() / new_run_id()
    console = Console(highlight=False)
    console.print(f"Airflow and all it makes are in {folder}; its start takes half a minute")

    def show(airflow: Airflow, shown: Demonstration) -> None:
        console.print(timeline_table(shown.tries))
        for span, served in shown.served.items():
            console.print(f"served after span {span} ({_SPANS[span]}): {served}")
        for event in shown.events:
            extra = {name: event["extra"].get(name) for name in _TOLD if name in event["extra"]}
            console.print(f"{event['name']}: {json.dumps(extra)}", soft_wrap=True)
        if arguments.stay:
            console.print(f"Airflow's pages: {airflow.url} (Ctrl-C ends it)")
            signal.pause()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    try:
        demonstrate(folder, port=arguments.port, tell=console.print, show=show)
    except AirflowError as error:
        console.print(f"airflow-demo: {error}")
        return 1
    return 0


def _end(number: int, _frame: FrameType | None) -> None:
    """Ends the demonstration, in order and whatever signals follow."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
