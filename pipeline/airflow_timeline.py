"""What Airflow did and when: every try of every task, from Airflow's own records."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
from rich import box
from rich.table import Table

from pipeline.airflow_service import Airflow

_BAR_CELLS = 28


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


def task_tries(
    airflow: Airflow, dag_id: str, run_ids: Sequence[str] | None = None
) -> list[TaskTry]:
    """All tries that have begun, by start; of all runs of the DAG or of the given ones."""
    if run_ids is None:
        runs = airflow.get(f"dags/{dag_id}/dagRuns", limit=100)["dag_runs"]
        run_ids = [run["dag_run_id"] for run in runs]
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
