"""The DAG under a real scheduler; a program that answers as it is told stands for `oneshot`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.airflow_demo.demo import TaskTry, task_tries
from benchmarks.airflow_demo.service import Airflow, running_airflow

_CHECKOUT = Path(__file__).resolve().parents[3]
_PYTHON = _CHECKOUT / ".venv-airflow" / "bin" / "python"
_DAG = "oneshot_retraining"
_STAGES = ["data", "train", "evaluate", "push"]
_CONFIG = "/from/a/variable.yaml"
_HANGS = {"seconds": 600}
_ANSWERS: dict[str, list[dict[str, Any]]] = {
    "new data": [{"result": {"status": "nothing_new", "span": None}}],
    "3 evaluate": [{"exit": 3, "result": {"blessed": False}}],
    "3 push": [{"exit": 3, "result": {"blessed": False}}],
    "14 data": [{"exit": 3, "result": {"status": "blocked", "error": "drift"}}],
    "4 data": [{"exit": 2, "result": {"error": "span 4: no such span"}}],
    "5 train": [{"exit": 1}, {}],
    "6 data": [{"result": {"status": "busy"}}, {}],
    "7 evaluate": [_HANGS, {}],
    "8 train": [_HANGS, {}],
    "9 train": [_HANGS, {}],
    "10 train": [{"exit": 1}],
}


@dataclass(frozen=True)
class Scene:
    """A running Airflow, the folder of the scripted program, and the runs that were triggered."""

    airflow: Airflow
    output: Path
    home: Path

    def run(self, span: int | None) -> str:
        return self.airflow.trigger(_DAG, span=span)

    def finished(self, run_id: str) -> tuple[str, dict[str, list[TaskTry]]]:
        """State of the run and the tries by task, once it has ended."""
        run = wait_for(
            lambda: self._ended(run_id), what=f"the end of {run_id}", timeout=150, pause=0.5
        )
        tries: dict[str, list[TaskTry]] = {}
        for each in task_tries(self.airflow, _DAG, [run_id]):
            tries.setdefault(each.task, []).append(each)
        return run["state"], tries

    def states(self, run_id: str) -> dict[str, str]:
        """State by task, of those too that never began."""
        path = f"dags/{_DAG}/dagRuns/{run_id}/taskInstances"
        instances = self.airflow.get(path)["task_instances"]
        return {instance["task_id"]: instance["state"] for instance in instances}

    def calls(self, key: str) -> list[dict[str, Any]]:
        """What was noted of the calls `<span> <stage>` so far."""
        paths = sorted((self.output / "calls" / key).glob("[0-9]*"))
        return [json.loads(path.read_text()) for path in paths]

    def notices(self, run_id: str) -> list[str]:
        """What people were told of a run. Waits a while for the first: it follows the run's end."""
        file = self.output / "notices"
        wait_for(
            lambda: file.exists() and run_id in file.read_text(),
            what=f"a notice of {run_id}",
            timeout=30,
            pause=0.2,
        )
        return [line for line in file.read_text().splitlines() if run_id in line]

    def hanging_process(self, key: str) -> int:
        calls = wait_for(lambda: self.calls(key), what=f"a call of {key}", timeout=60, pause=0.1)
        process: int = calls[0]["process"]
        return process

    def _ended(self, run_id: str) -> dict[str, Any] | None:
        run: dict[str, Any] = self.airflow.get(f"dags/{_DAG}/dagRuns/{run_id}")
        return run if run["state"] in ("success", "failed") else None


def wait_for(probe: Callable[[], Any], *, what: str, timeout: float, pause: float) -> Any:
    deadline = time.monotonic() + timeout
    while not (found := probe()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(pause)
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("airflow")
    output = folder / "output"
    output.mkdir()
    (output / "answers.json").write_text(json.dumps(_ANSWERS))
    program = folder / "oneshot"
    scripted = Path(__file__).with_name("scripted_oneshot.py")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{scripted}" "$@"\n')
    program.chmod(0o755)
    environ = {
        "ONESHOT_AIRFLOW_PROGRAM": str(program),
        "ONESHOT_AIRFLOW_OUTPUT": str(output),
        "ONESHOT_AIRFLOW_CONFIG": "{{ var.value.oneshot_config }}",
        "AIRFLOW_VAR_ONESHOT_CONFIG": _CONFIG,
        "SCRIPTED_NOTICES": str(output / "notices"),
        "ONESHOT_AIRFLOW_SCHEDULE": "@yearly",
        "ONESHOT_AIRFLOW_RETRIES": "2",
        "ONESHOT_AIRFLOW_RETRY_SECONDS": "1",
        "ONESHOT_AIRFLOW_TIMEOUT_HOURS": str(60 / 3600),
    }
    home = folder / "home"
    with running_airflow(home, dag_id=_DAG, environ=environ, heartbeat_timeout=10) as airflow:
        yield Scene(airflow, output, home)


def test_reading_the_dag_imports_neither_tfx_nor_this_project() -> None:
    code = (
        "import runpy, sys; runpy.run_path('pipeline/runners/airflow_dag.py');"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [_PYTHON, "-c", code], cwd=_CHECKOUT, capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.split())
    assert "airflow" in modules
    assert not modules & {"tfx", "tensorflow", "apache_beam", "pipeline", "components", "keras"}


def test_a_setting_that_is_no_number_is_named() -> None:
    code = """
import runpy
settings = runpy.run_path("pipeline/runners/airflow_dag.py")["DagSettings"]
assert settings.from_environ({"ONESHOT_AIRFLOW_RETRIES": "7"}).retries == 7
for name in ("RETRIES", "RETRY_SECONDS", "TIMEOUT_HOURS"):
    for text in ("many", "-1", "nan", "inf", "1e300"):
        try:
            settings.from_environ({f"ONESHOT_AIRFLOW_{name}": text})
        except ValueError as error:
            assert f"ONESHOT_AIRFLOW_{name} is '{text}': give a number" in str(error), error
        else:
            raise AssertionError((name, text))
"""
    subprocess.run([_PYTHON, "-c", code], cwd=_CHECKOUT, check=True)


def test_a_span_can_follow_from_the_date_of_the_run() -> None:
    code = """
import os, runpy
from datetime import datetime, timezone
os.environ["ONESHOT_AIRFLOW_SPAN"] = "{{ logical_date | ds_nodash }}"
task = runpy.run_path("pipeline/runners/airflow_dag.py")["dag"].get_task("data")
context = {"logical_date": datetime(2026, 1, 31, tzinfo=timezone.utc), "params": {"span": None}}
task.render_template_fields(context)
print(*task.command(task.chosen_span(context)))
context["params"]["span"] = 7
print(*task.command(task.chosen_span(context)))
"""
    done = subprocess.run(
        [_PYTHON, "-c", code], cwd=_CHECKOUT, capture_output=True, text=True, check=True
    )
    dated, by_hand = done.stdout.splitlines()
    assert " --span 20260131 --stage data " in dated
    assert " --span 7 --stage data " in by_hand


def test_the_stages_run_in_order_on_the_span_that_was_asked_for(scene: Scene) -> None:
    run_id = scene.run(1)
    state, tries = scene.finished(run_id)
    assert state == "success"
    assert list(tries) == _STAGES
    assert [(each.state, each.span) for stage in _STAGES for each in tries[stage]] == [
        ("success", 1)
    ] * 4
    calls = [scene.calls(f"1 {stage}") for stage in _STAGES]
    assert [[call["config"] for call in each] for each in calls] == [[_CONFIG]] * 4


def test_the_scheduled_run_skips_every_stage_where_nothing_is_new(scene: Scene) -> None:
    run_id = scene.run(None)
    state, _ = scene.finished(run_id)
    assert state == "success"
    assert scene.states(run_id) == dict.fromkeys(_STAGES, "skipped")
    assert len(scene.calls("new data")) >= 1
    assert scene.calls("new train") == []


def test_a_span_that_drift_blocks_is_not_trained_on(scene: Scene) -> None:
    run_id = scene.run(14)
    state, _ = scene.finished(run_id)
    assert state == "success"
    assert scene.states(run_id) == dict.fromkeys(_STAGES, "skipped")


def test_a_model_that_is_not_blessed_leaves_push_skipped_and_is_not_tried_again(
    scene: Scene,
) -> None:
    state, tries = scene.finished(scene.run(3))
    assert state == "success"
    assert {stage: [each.state for each in tries[stage]] for stage in tries} == {
        "data": ["success"],
        "train": ["success"],
        "evaluate": ["success"],
        "push": ["skipped"],
    }


def test_wrong_data_fails_at_once_and_people_are_told(scene: Scene) -> None:
    run_id = scene.run(4)
    state, _ = scene.finished(run_id)
    assert state == "failed"
    assert scene.states(run_id) == {
        "data": "failed",
        "train": "upstream_failed",
        "evaluate": "upstream_failed",
        "push": "upstream_failed",
    }
    assert len(scene.calls("4 data")) == 1
    (notice,) = scene.notices(run_id)
    assert notice.startswith(f"Airflow: data of {run_id} failed {_CONFIG}")
    assert "span 4: no such span" in notice


def test_a_failed_stage_is_tried_again_and_the_stages_before_it_are_not(scene: Scene) -> None:
    state, tries = scene.finished(scene.run(5))
    assert state == "success"
    assert [len(scene.calls(f"5 {stage}")) for stage in _STAGES] == [1, 2, 1, 1]
    first, second = tries["train"]
    assert second.start > first.start


def test_retries_come_to_an_end_of_which_people_are_told_once(scene: Scene) -> None:
    run_id = scene.run(10)
    state, _ = scene.finished(run_id)
    assert state == "failed"
    assert len(scene.calls("10 train")) == 3
    assert len(scene.notices(run_id)) == 1


def test_a_pipeline_held_by_another_run_is_waited_for(scene: Scene) -> None:
    state, tries = scene.finished(scene.run(6))
    assert state == "success"
    assert len(tries["data"]) == 2


def test_a_stage_that_hangs_is_ended_after_its_time_and_tried_again(scene: Scene) -> None:
    run_id = scene.run(7)
    hanging = scene.hanging_process("7 evaluate")
    state, _ = scene.finished(run_id)
    assert state == "success"
    assert len(scene.calls("7 evaluate")) == 2
    assert not is_alive(hanging)


@pytest.mark.parametrize(("span", "killed"), [(8, "task"), (9, "worker")])
def test_after_kill_9_the_program_ends_and_a_retry_completes_the_run(
    scene: Scene, span: int, killed: str
) -> None:
    run_id = scene.run(span)
    program = scene.hanging_process(f"{span} train")
    task = parent_of(program)
    os.kill(task if killed == "task" else parent_of(task), signal.SIGKILL)
    wait_for(lambda: not is_alive(program), what="the program's end", timeout=20, pause=0.1)
    state, tries = scene.finished(run_id)
    assert state == "success"
    assert [each.attempt for each in tries["train"]] == [1, 2]
    assert len(scene.calls(f"{span} train")) == 2


def test_runs_that_are_due_together_follow_one_another(scene: Scene) -> None:
    runs = [scene.run(span) for span in (11, 12)]
    spans = []
    for run_id in runs:
        state, tries = scene.finished(run_id)
        assert state == "success"
        ends = [each.end for stage in _STAGES for each in tries[stage]]
        assert None not in ends
        spans.append((tries["data"][0].start, max(end for end in ends if end)))
    first, second = sorted(spans)
    assert first[1] <= second[0]


def test_the_report_of_a_run_is_a_click_away_from_its_task(scene: Scene) -> None:
    run_id = scene.run(13)
    scene.finished(run_id)
    path = f"dags/{_DAG}/dagRuns/{run_id}/taskInstances/push/links"
    link = scene.airflow.get(path)["extra_links"]["Report"]
    assert link == "/oneshot/run-13-push/report.html"
    report = scene.output / "runs" / "run-13-push" / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<h1>how good it is</h1>")
    answer = httpx.get(f"{scene.airflow.url}{link}")
    assert "how good it is" in answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert httpx.get(f"{scene.airflow.url}/oneshot/run-9/report.html").status_code == 404
    outside = f"{scene.airflow.url}/oneshot/..%2F..%2Fhome/report.html"
    assert httpx.get(outside).status_code >= 400


def test_reports_are_shown_to_those_only_who_are_logged_in() -> None:
    # The Airflow of the tests takes everyone for an administrator.
    code = (
        "import runpy; from fastapi.testclient import TestClient\n"
        "module = runpy.run_path('pipeline/runners/airflow_reports.py')\n"
        "app = module['OneshotReports'].fastapi_apps[0]['app']\n"
        "print(TestClient(app).get('/run-1/report.html').status_code)"
    )
    done = subprocess.run(
        [_PYTHON, "-c", code], cwd=_CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["401"]
