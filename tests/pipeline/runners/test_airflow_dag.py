"""The DAG under a real scheduler; a program that answers as it is told stands for `oneshot`."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.airflow_demo.demo import TaskTry, stage_result, task_tries
from benchmarks.airflow_demo.service import Airflow, running_airflow
from tests.pipeline.runners.scripted_oneshot import scripted_program

_DAG = "oneshot_retraining"
_STAGES = ["data", "train", "evaluate", "push"]
_CONFIG = "/from/a/variable.yaml"
_HANGS = {"seconds": 600}
# Another DAG that follows the models.
_FOLLOWER = """
from airflow.sdk import Asset, dag, task

@dag(schedule=[Asset("oneshot_model")], is_paused_upon_creation=True)
def follower():
    @task
    def told(triggering_asset_events):
        events = triggering_asset_events[Asset("oneshot_model")]
        return {"versions": [event.extra.get("pushed_version") for event in events]}
    told()

follower()
"""
_ANSWERS: dict[str, list[dict[str, Any]]] = {
    "new data": [{"result": {"status": "nothing_new", "span": None}}],
    "3 evaluate": [{"exit": 3, "result": {"blessed": False}}],
    "3 push": [{"exit": 3, "result": {"blessed": False}}],
    "14 data": [{"exit": 3, "result": {"status": "blocked", "error": "drift"}}],
    "4 data": [{"exit": 2, "result": {"error": "span 4: no such span"}}],
    "5 train": [{"exit": 1}, {}],
    "6 data": [{"result": {"status": "busy", "error": "gc is under way"}}, {}],
    "15 data": [{"result": {"status": "already_trained"}}],
    "17 push": [{"result": {"pushed_version": 1700, "label": "stable"}}],
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

    def run(self, span: int | None, **params: Any) -> str:
        return self.airflow.trigger(_DAG, span=span, **params)

    def finished(self, run_id: str) -> tuple[str, dict[str, list[TaskTry]]]:
        """State of the run and the tries by task, once it has ended."""
        run = self.airflow.wait_for(lambda: self._ended(run_id))
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
        self.airflow.wait_for(lambda: file.exists() and run_id in file.read_text())
        return [line for line in file.read_text().splitlines() if run_id in line]

    def hanging_process(self, key: str) -> int:
        calls = self.airflow.wait_for(lambda: self.calls(key), pause=0.1)
        process: int = calls[0]["process"]
        return process

    def _ended(self, run_id: str) -> dict[str, Any] | None:
        run: dict[str, Any] = self.airflow.get(f"dags/{_DAG}/dagRuns/{run_id}")
        return run if run["state"] in ("success", "failed") else None


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
    program = scripted_program(folder)
    environ = {
        "ONESHOT_AIRFLOW_PROGRAM": str(program),
        "ONESHOT_AIRFLOW_OUTPUT": str(output),
        "ONESHOT_AIRFLOW_CONFIG": "{{ var.value.oneshot_config }}",
        "AIRFLOW_VAR_ONESHOT_CONFIG": _CONFIG,
        "SCRIPTED_NOTICES": str(output / "notices"),
        "ONESHOT_AIRFLOW_SCHEDULE": "@yearly or assets",
        "ONESHOT_AIRFLOW_RETRIES": "2",
        "ONESHOT_AIRFLOW_RETRY_SECONDS": "1",
        "ONESHOT_AIRFLOW_TIMEOUT_HOURS": str(60 / 3600),
    }
    home = folder / "home"
    (home / "dags").mkdir(parents=True)
    (home / "dags" / "follower.py").write_text(_FOLLOWER)
    with running_airflow(home, dag_id=_DAG, environ=environ, heartbeat_timeout=10) as airflow:
        yield Scene(airflow, output, home)


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


def test_a_pipeline_held_by_another_run_is_waited_for_without_a_retry(scene: Scene) -> None:
    run_id = scene.run(6)
    state, tries = scene.finished(run_id)
    assert state == "success"
    assert [each.attempt for each in tries["data"]] == [1]
    assert len(scene.calls("6 data")) == 2


def test_a_span_that_was_trained_on_is_nothing_to_do(scene: Scene) -> None:
    run_id = scene.run(15)
    state, _ = scene.finished(run_id)
    assert state == "success"
    assert scene.states(run_id) == dict.fromkeys(_STAGES, "skipped")


def test_a_run_by_hand_takes_settings_or_only_says_what_it_would_do(scene: Scene) -> None:
    chosen = ["train.steps=500", "train.xla=off"]
    run_id = scene.run(16, set=chosen)
    state, _ = scene.finished(run_id)
    assert state == "success"
    for stage in _STAGES:
        (call,) = scene.calls(f"16 {stage}")
        assert call["set"] == [*chosen, "retrain.attempts=1"]
    run_id = scene.run(18, dry_run=True)
    state, _ = scene.finished(run_id)
    assert scene.states(run_id) == dict.fromkeys(_STAGES, "skipped")
    assert scene.calls("18 data") == []
    log = scene.airflow.get(f"dags/{_DAG}/dagRuns/{run_id}/taskInstances/data/logs/1")
    assert "--span 18 --stage data" in json.dumps(log)


def test_a_landed_span_starts_a_retraining(scene: Scene) -> None:
    scene.airflow.announce("oneshot_spans", span=20)

    def started() -> list[str]:
        runs = scene.airflow.get(f"dags/{_DAG}/dagRuns", run_type="asset_triggered")["dag_runs"]
        return [run["dag_run_id"] for run in runs]

    (run_id,) = scene.airflow.wait_for(started)
    scene.finished(run_id)
    events = scene.airflow.asset_events()
    (event,) = [each for each in events if each["name"] == "oneshot_spans"]
    assert event["extra"]["span"] == 20
    assert [run["run_id"] for run in event["created_dagruns"]] == [run_id]
    assert len(scene.calls("new data")) >= 1


def test_a_pushed_model_starts_the_dags_that_follow_it_and_others_do_not(scene: Scene) -> None:
    scene.airflow.wait_for(
        lambda: "follower" in [each["dag_id"] for each in scene.airflow.get("dags")["dags"]]
    )
    scene.airflow.pause("follower", paused=False)
    bad, good = scene.run(3), scene.run(17)
    scene.finished(bad)
    scene.finished(good)
    events = [each for each in scene.airflow.asset_events() if each["name"] == "oneshot_model"]
    assert bad not in [each["source_run_id"] for each in events]
    (event,) = [each for each in events if each["source_run_id"] == good]
    assert event["source_task_id"] == "push"
    assert event["extra"]["pushed_version"] == 1700
    assert event["extra"]["span"] == 17
    assert event["extra"]["label"] == "stable"

    def is_followed() -> bool:
        runs = scene.airflow.get("dags/follower/dagRuns")["dag_runs"]
        told = [stage_result(scene.airflow, "follower", run["dag_run_id"], "told") for run in runs]
        return any(1700 in each.get("versions", []) for each in told)

    scene.airflow.wait_for(is_followed)


def test_dag_and_tasks_are_described_on_their_pages(scene: Scene) -> None:
    assert "oneshot_spans" in scene.airflow.get(f"dags/{_DAG}/details")["doc_md"]
    tasks = scene.airflow.get(f"dags/{_DAG}/tasks")["tasks"]
    assert sorted(task["task_id"] for task in tasks if task["doc_md"]) == sorted(_STAGES)


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
    scene.airflow.wait_for(lambda: not is_alive(program), pause=0.1)
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
