"""The retraining as an Airflow 3 DAG: one task a stage, each a call of `oneshot retrain`.

A file for Airflow's DAGs folder (a link to it will do). It needs Airflow and nothing else: TFX is
imported by the programs that the tasks start, never by Airflow, whose limit of 30 s for reading a
DAG file that import exceeds. docs/airflow.md tells how to set it up.

It runs by the clock, when an event of the asset `oneshot_spans` says that a span has landed, or
both. A model that was pushed is an event of the asset `oneshot_model`, for other DAGs to follow.

A task's outcome follows from the exit code and the JSON of its program:

| `oneshot retrain` ends with | the task is |
|---|---|
| 0, done | success |
| 0, nothing new to train on, or drift says no | skipped, and so are the stages after it |
| 0, another run holds the pipeline | up for reschedule: it takes no worker slot, and no retry |
| 2, wrong configuration or data | failed at once: a retry would fail too |
| 3, the model is not blessed | `push`: skipped; an earlier stage: success |
| anything else, a signal, a timeout | failed, and tried again later |
"""

import json
import logging
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    BaseOperator,
    BaseOperatorLink,
    Param,
    chain,
)
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
)

_log = logging.getLogger(__name__)
DAG_ID: Final = "oneshot_retraining"
STAGES: Final = {
    "data": "Chooses the span, looks for drift, and reads, counts and checks the images.",
    "train": "Trains, from the last checkpoint where an earlier try was cut off.",
    "evaluate": "Judges the model, against the latest that was pushed too.",
    "push": "Pushes and labels the model if it is blessed, and tells of it by `oneshot_model`.",
}
SPANS: Final = Asset("oneshot_spans", group="oneshot")
MODEL: Final = Asset("oneshot_model", group="oneshot")
_FIRST, *_, _LAST = STAGES
_NEW: Final = "new"
# Words and exit codes of `oneshot retrain`, as in pipeline/runs/status.py.
_BUSY: Final = "busy"
_BLOCKED: Final = ("not_blessed", "blocked")
_NOTHING_TO_DO: Final = ("nothing_new", "skipped", "blocked")
_ALREADY_TRAINED: Final = "already_trained"
_EXIT_USAGE: Final = 2
_EXIT_NOT_BLESSED: Final = 3
_LARGEST: Final = 100_000  # number that a setting may be: none of them makes sense beyond
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
    `{{ var.value.oneshot_output }}`: those are filled in when a task starts. An empty text leaves
    Airflow's own default.
    """

    program: str  # the `oneshot` of the environment that has TFX
    config: str  # the pipeline's YAML file
    output: str  # the pipeline's output folder
    span: str = _NEW  # the newest not yet trained on; or a number: {{ logical_date | ds_nodash }}
    schedule: str = "@daily"  # cron line or preset, seconds, `assets`, or `@daily or assets`
    retries: int = 3
    retry_seconds: float = 300.0  # wait before the first retry, twice as long before each further
    timeout_hours: float = 6.0  # longest training; the other stages have a quarter of it
    dagrun_timeout_hours: float = 0.0  # longest run, waits and retries included; 0: no limit
    owner: str = ""
    pool: str = ""
    queue: str = ""
    image: str = ""  # runs the stages in pods with this image, by the KubernetesPodOperator
    pod_template: str = ""  # YAML file of such a pod: volumes, resources, service account, ...
    report_url: str = "/oneshot/{run_id}/report.html"  # link to a run's report

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "DagSettings":
        """Settings of this environment; paths default to the checkout that this file is in.

        Raises:
          ValueError: a number is none, or absurd; Airflow shows it as the DAG's import error.
        """
        checkout = Path(__file__).resolve().parents[2]
        in_image = environ.get("ONESHOT_AIRFLOW_IMAGE")
        values: dict[str, Any] = {
            "program": "oneshot" if in_image else str(checkout / ".venv" / "bin" / "oneshot"),
            "config": str(checkout / "pipeline_config.yaml"),
            "output": str(checkout / "output"),
        }
        for name in cls.__dataclass_fields__:
            variable = f"ONESHOT_AIRFLOW_{name.upper()}"
            if given := environ.get(variable):
                values[name] = _checked(variable, given, kind=type(getattr(cls, name, "")))
        return cls(**values)


def _checked(variable: str, text: str, kind: type) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if kind is not str and not 0 <= value <= _LARGEST:
        raise ValueError(f"{variable} is {text!r}: give a number from 0 to {_LARGEST}")
    return value


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
          AirflowRescheduleException: another run holds the pipeline.
          AirflowFailException: a retry cannot help.
          AirflowException: a retry may help.
        """
        return self.judged(context, *self._call(self.command(context)))

    def command(self, context: Mapping[str, Any]) -> list[str]:
        """The command line. The first stage chooses the span; the others work on that one.

        Raises:
          AirflowSkipException: a dry run; the message is the command.
        """
        params = context["params"]
        span = self.span.strip() if params["span"] is None else params["span"]
        if self.task_id != _FIRST:
            span = context["ti"].xcom_pull(task_ids=_FIRST)["span"]
        chosen = ["--if-new"] if span == _NEW else ["--span", str(span)]
        command = [self.program, "retrain", *chosen, "--stage", self.task_id, "--json"]
        command += ["--config", self.config, "--output", self.output_dir]
        # Airflow does the retries, so that each is seen, and waited for, in one place.
        for override in (*params["set"], "retrain.attempts=1"):
            command += ["--set", override]
        if params["dry_run"]:
            raise AirflowSkipException(f"dry run: {shlex.join(command)}")
        return command

    def judged(
        self, context: Mapping[str, Any], code: int, result: dict[str, Any]
    ) -> dict[str, Any]:
        """What the program printed, if the task is a success; see `execute` for what it raises."""
        if run_id := result.get("run_id"):
            self.report_link = self.report_url.format(run_id=run_id)
        status, error = result.get("status"), result.get("error")
        if code == _EXIT_USAGE:
            raise AirflowFailException(error or "wrong configuration or data")
        if code not in (0, _EXIT_NOT_BLESSED):
            raise AirflowException(error or f"`oneshot retrain` ended with exit code {code}")
        if status == _BUSY:
            self.log.warning("%s; looking again in %s", error or "busy", self.retry_delay)
            raise AirflowRescheduleException(datetime.now(timezone.utc) + self.retry_delay)
        if status in _NOTHING_TO_DO or (status == _ALREADY_TRAINED and self.task_id == _FIRST):
            raise AirflowSkipException(error or status)
        if result.get("blessed") is False:
            if self.task_id == _LAST:
                raise AirflowSkipException("the model is not blessed: what is served stays")
            self.log.warning("the model is not blessed")
        elif self.task_id == _LAST:
            context["outlet_events"][MODEL].extra = result
        return result

    def _call(self, command: list[str]) -> tuple[int, dict[str, Any]]:
        """Runs a program; its stderr is logged line by line.

        Returns:
          exit code and the JSON object that it printed last, in a line; {} if there is none.
        """
        # Nor notices: Airflow alone knows when the tries are used up.
        command = [*command, "--no-failure-notice"]
        self.log.info("%s", shlex.join(command))
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


def tell_timeout(context: Mapping[str, Any]) -> None:
    """Called when a run has failed: tells of the one failure that is no task's."""
    if context.get("reason") == "timed_out" and "task" in context:
        tell_failure({**context, "exception": "the run took longer than it may (dagrun_timeout)"})


def pod_stage() -> type[RetrainStage]:
    """The operator whose stages run in pods; needs apache-airflow-providers-cncf-kubernetes."""
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    class PodStage(RetrainStage, KubernetesPodOperator):
        """The same stage in a pod, whose sidecar brings the program's JSON.

        `[operators] default_deferrable` lets the triggerer wait for it in place of a worker. The
        program tells people of each failed try itself: Airflow's hosts need not have it.
        """

        template_fields = (*RetrainStage.template_fields, *KubernetesPodOperator.template_fields)
        on_kill = KubernetesPodOperator.on_kill

        def __init__(self, *, settings: DagSettings, **arguments: Any) -> None:
            super().__init__(
                settings=settings,
                image=settings.image,
                pod_template_file=settings.pod_template or None,
                name=f"oneshot-{arguments['task_id']}",
                cmds=["sh", "-c", 'exec "$0" "$@" > /airflow/xcom/return.json'],
                do_xcom_push=True,
                skip_on_exit_code=(_EXIT_USAGE, _EXIT_NOT_BLESSED),
                log_pod_spec_on_failure=False,
                on_failure_callback=None,
                **arguments,
            )

        def execute(self, context: Mapping[str, Any]) -> Any:
            self.arguments = self.command(context)
            return KubernetesPodOperator.execute(self, context)

        def cleanup(
            self, pod: Any, remote_pod: Any, xcom_result: Any = None, context: Any = None
        ) -> None:
            """Called when the pod has ended, however it was waited for."""
            result = xcom_result or {}
            try:
                super().cleanup(pod, remote_pod, xcom_result, context)
            except AirflowSkipException:
                blocked = result.get("status") in _BLOCKED
                self.judged(context, _EXIT_NOT_BLESSED if blocked else _EXIT_USAGE, result)
                raise
            self.judged(context, 0, result)

    return PodStage


def _schedule(text: str) -> Any:
    """The DAG's schedule; see DagSettings."""
    if text == "assets":
        return [SPANS]
    time = text.removesuffix("or assets").strip()
    number = time.replace(".", "", 1).isdigit()
    schedule = timedelta(seconds=float(time)) if number else time
    if time == text:
        return schedule
    return AssetOrTimeSchedule(timetable=DAG(DAG_ID, schedule=schedule).timetable, assets=[SPANS])


def retraining_dag(settings: DagSettings) -> DAG:
    """The DAG. Spans are trained one after the other, whatever the schedule says."""
    longest = timedelta(hours=settings.timeout_hours)
    hours = settings.dagrun_timeout_hours
    given = {name: getattr(settings, name) for name in ("owner", "pool", "queue")}
    with DAG(
        DAG_ID,
        description="Retrains on the span of images that arrived last; promotes what is blessed",
        schedule=_schedule(settings.schedule),
        start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
        # Missed times are not made up for: one run takes the newest span, and the spans before it
        # are in its window. To train on each of them: `airflow backfill create`.
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=hours) if hours else None,
        on_failure_callback=None if settings.image else tell_timeout,
        params={
            "span": Param(
                None, type=["null", "integer"], minimum=0, description="train on this span"
            ),
            "set": Param(
                [],
                type="array",
                items={"type": "string"},
                description="settings of this run, such as train.steps=500, each on a line",
            ),
            "dry_run": Param(
                False, type="boolean", description="only write the command into the task's log"
            ),
        },
        default_args={
            "retries": settings.retries,
            "retry_delay": timedelta(seconds=settings.retry_seconds),
            "retry_exponential_backoff": 2,
            "max_retry_delay": timedelta(hours=2),
            "on_failure_callback": tell_failure,
            **{name: value for name, value in given.items() if value},
        },
        tags=["oneshot"],
        doc_md=__doc__,
    ) as dag:
        stage_class = pod_stage() if settings.image else RetrainStage
        chain(
            *(
                stage_class(
                    task_id=stage,
                    settings=settings,
                    doc_md=description,
                    execution_timeout=longest if stage == "train" else longest / 4,
                    inlets=[SPANS] if stage == _FIRST else [],
                    outlets=[MODEL] if stage == _LAST else [],
                )
                for stage, description in STAGES.items()
            )
        )
    return dag


# Airflow finds a DAG by importing the file.
dag = retraining_dag(DagSettings.from_environ(os.environ))
