"""The retraining as an Airflow 3 DAG: one task a stage, each a call of `oneshot retrain`.

A file for Airflow's DAGs folder (a link to it will do). It needs Airflow and nothing else: TFX is
imported by the programs that the tasks start, never by Airflow, whose limit of 30 s for reading a
DAG file that import exceeds. docs/retraining.md tells how to set it up.

A task's outcome follows from the exit code and the JSON of its program:

| `oneshot retrain` ends with | the task is |
|---|---|
| 0, done | success |
| 0, nothing new to train on, or drift says no | skipped, and so are the stages after it |
| 0, another run holds the pipeline | failed, and tried again later |
| 2, wrong configuration or data | failed at once: a retry would fail too |
| 3, the model is not blessed | `push`: skipped; an earlier stage: success |
| anything else, a signal, a timeout | failed, and tried again later |
"""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

from airflow.sdk import DAG, BaseOperator, BaseOperatorLink, Param, chain
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

_log = logging.getLogger(__name__)
DAG_ID: Final = "oneshot_retraining"
STAGES: Final = ("data", "train", "evaluate", "push")
_NEW: Final = "new"
# Words and exit codes of `oneshot retrain`, as in pipeline/runs/status.py.
_BUSY: Final = "busy"
_NOTHING_TO_DO: Final = ("nothing_new", "skipped", "blocked")
_EXIT_USAGE: Final = 2
_EXIT_NOT_BLESSED: Final = 3
_NUMBERS: Final = {  # how they are read, and the largest that makes sense
    "retries": (int, 1000),
    "retry_seconds": (float, 86_400),
    "timeout_hours": (float, 8760),
}
_GRACE_SECONDS: Final = 4.0  # less than the 5 s that Airflow leaves between SIGTERM and SIGKILL

# Starts a program that gets SIGTERM when the task's process dies, however it dies: after a kill -9
# of Airflow's worker nobody else would stop it, and the retry would find the pipeline taken.
_TIED_TO_PARENT: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the task that started this is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class DagSettings:
    """How the DAG is set up; each value is the environment's ONESHOT_AIRFLOW_<NAME>.

    Program, config, output, span and report_url may hold Airflow's templates, for example
    `{{ var.value.oneshot_output }}`: those are filled in when a task starts.
    """

    program: str  # the `oneshot` of the environment that has TFX
    config: str  # the pipeline's YAML file
    output: str  # the pipeline's output folder
    span: str = _NEW  # the newest not yet trained on; or a number: {{ logical_date | ds_nodash }}
    schedule: str = "@daily"  # cron line or preset; a plain number is seconds
    retries: int = 3
    retry_seconds: float = 300.0  # wait before the first retry, twice as long before each further
    timeout_hours: float = 6.0  # longest training; the other stages have a quarter of it
    report_url: str = "/oneshot/{run_id}/report.html"  # link to a run's report

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "DagSettings":
        """Settings of this environment; paths default to the checkout that this file is in.

        Raises:
          ValueError: a number is none, or absurd; Airflow shows it as the DAG's import error.
        """
        checkout = Path(__file__).resolve().parents[2]
        values = {
            "program": str(checkout / ".venv" / "bin" / "oneshot"),
            "config": str(checkout / "pipeline_config.yaml"),
            "output": str(checkout / "output"),
        }
        for name in cls.__dataclass_fields__:
            if given := environ.get(f"ONESHOT_AIRFLOW_{name.upper()}"):
                values[name] = given
        return cls(**{name: _checked(name, value) for name, value in values.items()})


def _checked(name: str, value: str) -> Any:
    if name not in _NUMBERS:
        return value
    kind, most = _NUMBERS[name]
    try:
        number = kind(value)
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise ValueError(
            f"ONESHOT_AIRFLOW_{name.upper()} is {value!r}: give a number from 0 to {most}"
        )
    return number


class ReportLink(BaseOperatorLink):
    """The button "Report" of a task: the report of the run that it belongs to."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:  # noqa: ARG002 Airflow's
        return getattr(operator, "report_link", "")


class RetrainStage(BaseOperator):
    """The stage of `oneshot retrain` that the task is named after, in a process that ends with it.

    Args:
      settings: where the program is and what it works on.

    The program's log becomes the task's log, its JSON the task's XCom.
    """

    template_fields: Sequence[str] = ("program", "config", "output_dir", "span", "report_url")
    operator_extra_links = (ReportLink(),)
    ui_color = "#e8f0fe"

    def __init__(self, *, settings: DagSettings, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.program = settings.program
        self.config = settings.config
        self.output_dir = settings.output
        self.span = settings.span
        self.report_url = settings.report_url
        self.report_link = ""
        self._process: subprocess.Popen[bytes] | None = None

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the stage.

        Raises:
          AirflowSkipException: nothing new to train on, or the model is not to be promoted.
          AirflowFailException: a retry cannot help.
          AirflowException: a retry may help.
        """
        code, result = self._call(self.command(self.chosen_span(context)))
        if run_id := result.get("run_id"):
            self.report_link = self.report_url.format(run_id=run_id)
        status, error = result.get("status"), result.get("error")
        if code == _EXIT_USAGE:
            raise AirflowFailException(error or "wrong configuration or data")
        if code not in (0, _EXIT_NOT_BLESSED):
            raise AirflowException(error or f"`oneshot retrain` ended with exit code {code}")
        if status == _BUSY:
            raise AirflowException(error or "another run holds the pipeline")
        if status in _NOTHING_TO_DO:
            raise AirflowSkipException(error or status)
        if result.get("blessed") is False:
            if self.task_id == STAGES[-1]:
                raise AirflowSkipException("the model is not blessed: what is served stays")
            self.log.warning("the model is not blessed")
        return result

    def command(self, span: str) -> list[str]:
        """The command line for a span: `new` or a number."""
        chosen = ["--if-new"] if span == _NEW else ["--span", span]
        command = [self.program, "retrain", *chosen, "--stage", self.task_id, "--json"]
        command += ["--config", self.config, "--output", self.output_dir]
        # Airflow does the retries, so that each is seen, and waited for, in one place; and it alone
        # knows when they are used up.
        return [*command, "--set", "retrain.attempts=1", "--no-failure-notice"]

    def chosen_span(self, context: Mapping[str, Any]) -> str:
        """The first stage chooses the span; the others work on that one, whatever arrives."""
        if self.task_id != STAGES[0]:
            return str(context["ti"].xcom_pull(task_ids=STAGES[0])["span"])
        return str(context["params"]["span"] or self.span).strip()

    def _call(self, command: list[str]) -> tuple[int, dict[str, Any]]:
        """Runs a program; its stderr is logged line by line.

        Returns:
          exit code and the JSON object that it printed last, in a line; {} if there is none.
        """
        self.log.info("%s", " ".join(command))
        tied = [sys.executable, "-c", _TIED_TO_PARENT, str(os.getpid()), *command]
        with (
            TemporaryFile() as stdout,
            subprocess.Popen(
                tied, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE
            ) as self._process,
        ):
            reader = threading.Thread(target=self._log_lines, args=[self._process], daemon=True)
            reader.start()
            try:
                code = self._wait()
            except BaseException:
                self.on_kill()
                raise
            # Not for ever: a stray grandchild may hold the pipe.
            reader.join(timeout=_GRACE_SECONDS)
            stdout.seek(0)
            return code, _last_json(stdout.read().decode(errors="replace"))

    def _wait(self) -> int:
        """Waits for the program, or for the end of the worker that this task belongs to."""
        assert self._process is not None
        worker = os.getppid()
        while True:
            try:
                return self._process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                # Killed, the worker takes nobody along. Its task counts as dead after a while and
                # is tried again, when this one must not be at work any more. There is nobody left
                # to report to.
                if os.getppid() != worker:
                    self.on_kill()
                    os._exit(1)

    def _log_lines(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log.info("%s", line.decode(errors="replace").rstrip())

    def on_kill(self) -> None:
        """Ends the program: the task timed out or somebody cleared or marked it."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _last_json(text: str) -> dict[str, Any]:
    """The object in the last line."""
    try:
        found = json.loads(text.strip().rpartition("\n")[2])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def tell_failure(context: Mapping[str, Any]) -> None:
    """Called when a task has failed for good: retries are used up, or were no use.

    Airflow calls it in the task's process or, where that was killed, in the DAG processor, there
    sometimes twice.
    """
    instance, task = context["ti"], context["task"]
    if "{{" in task.program + task.config:
        task.render_template_fields(context)
    title = f"Airflow: {instance.task_id} of {instance.run_id} failed"
    error = context.get("exception") or "its process, or Airflow's worker, was lost"
    _log.error("%s: %s", title, error)
    details = {"try": instance.try_number, "error": error}
    command = [task.program, "notify", "failed", title, "--config", task.config]
    command += [part for k, v in details.items() for part in ("--detail", f"{k}={v}")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        _log.warning("No notice was sent: %s", done.stderr.strip())


def retraining_dag(settings: DagSettings) -> DAG:
    """The DAG. Spans are trained one after the other, whatever the schedule says."""
    number = settings.schedule.replace(".", "", 1).isdigit()
    schedule = timedelta(seconds=float(settings.schedule)) if number else settings.schedule
    with DAG(
        DAG_ID,
        description="Retrains on the span of images that arrived last; promotes what is blessed",
        schedule=schedule,
        start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
        # Missed times are not made up for: one run takes the newest span, and the spans before it
        # are in its window. To train on each of them: `airflow backfill create`.
        catchup=False,
        max_active_runs=1,
        params={
            "span": Param(
                None, type=["null", "integer"], minimum=0, description="train on this span"
            )
        },
        default_args={
            "retries": settings.retries,
            "retry_delay": timedelta(seconds=settings.retry_seconds),
            "retry_exponential_backoff": 2,
            "max_retry_delay": timedelta(hours=2),
            "on_failure_callback": tell_failure,
        },
        tags=["oneshot"],
        doc_md=__doc__,
    ) as dag:
        tasks = []
        for stage in STAGES:
            longest = timedelta(hours=settings.timeout_hours / (1 if stage == "train" else 4))
            tasks.append(RetrainStage(task_id=stage, settings=settings, execution_timeout=longest))
        chain(*tasks)
    return dag


# Airflow finds a DAG by importing the file.
dag = retraining_dag(DagSettings.from_environ(os.environ))
