"""What the DAG's file makes of its settings, in Airflow's environment and without a scheduler."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.pipeline.runners.scripted_oneshot import scripted_program

_CHECKOUT = Path(__file__).resolve().parents[3]
_PYTHON = _CHECKOUT / ".venv-airflow" / "bin" / "python"
_POD_PYTHON = os.environ.get("ONESHOT_TEST_POD_PYTHON", str(_PYTHON))  # see airflow_pods.py


def in_airflow(code: str, **environ: str) -> list[str]:
    """Runs code in Airflow's environment, which has the DAG's module as `module`; its lines."""
    code = f"import runpy; module = runpy.run_path('pipeline/runners/airflow_dag.py')\n{code}"
    done = subprocess.run(
        [_PYTHON, "-c", code],
        cwd=_CHECKOUT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_reading_the_dag_imports_neither_tfx_nor_this_project() -> None:
    (line,) = in_airflow(
        "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    modules = set(line.split())
    assert "airflow" in modules
    assert not modules & {"tfx", "tensorflow", "apache_beam", "pipeline", "components", "keras"}
    assert "kubernetes" not in modules


def test_a_setting_that_is_no_number_is_named() -> None:
    in_airflow("""
settings = module["DagSettings"]
assert settings.from_environ({"ONESHOT_AIRFLOW_RETRIES": "7"}).retries == 7
for name in ("RETRIES", "RETRY_SECONDS", "TIMEOUT_HOURS", "DAGRUN_TIMEOUT_HOURS"):
    for text in ("many", "-1", "nan", "inf", "1e300"):
        try:
            settings.from_environ({f"ONESHOT_AIRFLOW_{name}": text})
        except ValueError as error:
            assert f"ONESHOT_AIRFLOW_{name} is '{text}': give a number" in str(error), error
        else:
            raise AssertionError((name, text))
""")


def test_a_span_can_follow_from_the_date_of_the_run() -> None:
    dated, by_hand = in_airflow(
        """
from datetime import datetime, timezone
task = module["dag"].get_task("data")
params = {"span": None, "set": [], "dry_run": False}
context = {"logical_date": datetime(2026, 1, 31, tzinfo=timezone.utc), "params": params}
task.render_template_fields(context)
print(*task.command(context))
params["span"] = 0
print(*task.command(context))
""",
        ONESHOT_AIRFLOW_SPAN="{{ logical_date | ds_nodash }}",
    )
    assert " --span 20260131 --stage data " in dated
    assert " --span 0 --stage data " in by_hand


@pytest.mark.parametrize(
    ("schedule", "timetable"),
    [
        ("0 3 * * *", "CronTriggerTimetable(expression='0 3 * * *'"),
        ("90", "DeltaTriggerTimetable(delta=datetime.timedelta(seconds=90)"),
        ("assets", "AssetTriggeredTimetable(asset_condition=AssetAll(Asset(name='oneshot_spans'"),
        ("@weekly or assets", "AssetOrTimeSchedule(CronTriggerTimetable(expression='0 0 * * 0'"),
        ("1.5 or assets", "AssetOrTimeSchedule(DeltaTriggerTimetable(delta="),
    ],
)
def test_the_schedule_is_a_clock_landed_spans_or_both(schedule: str, timetable: str) -> None:
    (line,) = in_airflow(
        """
timetable = module["dag"].timetable
name = type(timetable).__name__
assert "Asset" not in name or "'oneshot_spans'" in str(timetable)
print(f"{name}({timetable.timetable})" if hasattr(timetable, "timetable") else timetable)
""",
        ONESHOT_AIRFLOW_SCHEDULE=schedule,
    )
    assert line.startswith(timetable)


def test_pool_queue_owner_and_the_longest_run_are_settings() -> None:
    line = """
dag = module["dag"]
task = dag.get_task("train")
print(task.pool, task.queue, task.owner, dag.dagrun_timeout)
"""
    given = {
        "ONESHOT_AIRFLOW_POOL": "gpu",
        "ONESHOT_AIRFLOW_QUEUE": "training",
        "ONESHOT_AIRFLOW_OWNER": "vision",
        "ONESHOT_AIRFLOW_DAGRUN_TIMEOUT_HOURS": "30",
    }
    assert in_airflow(line, **given) == ["gpu training vision 1 day, 6:00:00"]
    assert in_airflow(line) == ["default_pool default airflow None"]


def test_people_are_told_of_a_run_that_took_too_long_and_not_twice_of_a_failed_task(
    tmp_path: Path,
) -> None:
    notices = tmp_path / "notices"
    program = scripted_program(tmp_path)
    in_airflow(
        """
from types import SimpleNamespace
instance = SimpleNamespace(task_id="train", run_id="run 7", try_number=1)
context = {"ti": instance, "task": module["dag"].get_task("train")}
module["dag"].on_failure_callback({**context, "reason": "task_failure"})
module["dag"].on_failure_callback({**context, "reason": "timed_out"})
""",
        ONESHOT_AIRFLOW_PROGRAM=str(program),
        SCRIPTED_NOTICES=str(notices),
    )
    (line,) = notices.read_text().splitlines()
    assert line.startswith("Airflow: train of run 7 failed")
    assert "longer than it may" in line


def test_stages_run_in_pods_where_an_image_is_given() -> None:
    script = Path(__file__).with_name("airflow_pods.py")
    environ = {**os.environ, "ONESHOT_AIRFLOW_IMAGE": "registry/oneshot:1"}
    done = subprocess.run(
        [_POD_PYTHON, script], cwd=_CHECKOUT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


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
