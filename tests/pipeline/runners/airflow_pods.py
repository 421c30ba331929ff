"""Tries the stages that run in pods, in Airflow's environment; test_airflow_settings.py starts it.

That environment lacks the Kubernetes provider, so a stand-in has the arguments and the behaviour
that the DAG relies on. ONESHOT_TEST_POD_PYTHON names a Python that has Airflow and the provider.
"""

import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
)

_PROVIDER = "airflow.providers.cncf.kubernetes.operators.pod"
_TEMPLATE = "metadata:\n  labels:\n    team: vision\nspec:\n  containers:\n    - name: base\n"


class StandIn(BaseOperator):
    template_fields = ("image", "cmds", "arguments", "pod_template_file")

    def __init__(
        self,
        *,
        image: str,
        pod_template_file: str | None,
        name: str,
        cmds: list[str],
        do_xcom_push: bool,
        skip_on_exit_code: tuple[int, ...],
        log_pod_spec_on_failure: bool,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.image, self.pod_template_file, self.name = image, pod_template_file, name
        self.cmds, self.arguments = cmds, []
        self.skip_on_exit_code = skip_on_exit_code

    def execute(self, context: Mapping[str, Any]) -> Any:
        return self.execute_sync(context)

    def cleanup(
        self, pod: Any, remote_pod: Any, xcom_result: Any = None, context: Any = None
    ) -> None:
        code = remote_pod.status.container_statuses[0].state.terminated.exit_code
        if code in self.skip_on_exit_code:
            raise AirflowSkipException(f"exit code {code}")
        if code:
            raise AirflowException("the pod failed")


try:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator as Pod
except ImportError:
    Pod = StandIn
    sys.modules[_PROVIDER] = ModuleType(_PROVIDER)
    sys.modules[_PROVIDER].KubernetesPodOperator = StandIn  # type: ignore[attr-defined]

# Without a cluster, and without a task runner around.
ExecutorSafeguard.test_mode = True
Pod.execute_sync = lambda self, context: None
for name in (
    "is_istio_enabled",
    "patch_already_checked",
    "process_pod_deletion",
    "_push_xcom_with_fan_out",
):
    setattr(Pod, name, lambda *_, **__: None)

dag = runpy.run_path("pipeline/runners/airflow_dag.py")["dag"]
MODEL = dag.get_task("push").outlets[0]


def context_of(**params: Any) -> dict[str, Any]:
    return {
        "params": {"span": None, "set": [], "dry_run": False, **params},
        "ti": SimpleNamespace(xcom_pull=lambda task_ids: {"span": 7}),
        "outlet_events": {MODEL: SimpleNamespace(extra={})},
    }


def ended(stage: str, code: int, result: dict[str, Any] | None) -> dict[str, Any]:
    """Lets a pod end with an exit code; returns the extra of the model's event."""
    terminated = SimpleNamespace(exit_code=code, reason=None, message=None)
    container = SimpleNamespace(name="base", state=SimpleNamespace(terminated=terminated))
    pod = SimpleNamespace(
        metadata=SimpleNamespace(name="pod", namespace="here", annotations={}, labels={}),
        spec=SimpleNamespace(containers=[container]),
        status=SimpleNamespace(
            phase="Failed" if code else "Succeeded",
            container_statuses=[container],
            init_container_statuses=[],
        ),
    )
    context = context_of()
    dag.get_task(stage).cleanup(pod=pod, remote_pod=pod, xcom_result=result, context=context)
    extra: dict[str, Any] = context["outlet_events"][MODEL].extra
    return extra


def raised(call: Callable[..., Any], *arguments: Any) -> AirflowException:
    try:
        call(*arguments)
    except AirflowException as error:
        return error
    raise AssertionError(arguments)


for stage in ("data", "train", "evaluate", "push"):
    task = dag.get_task(stage)
    assert isinstance(task, Pod)
    task.execute(context_of(set=["train.steps=5"]))
    assert task.image == "registry/oneshot:1"
    assert task.cmds[-1].endswith("> /airflow/xcom/return.json")
    line = " ".join(task.arguments)
    span = "--if-new" if stage == "data" else "--span 7"
    assert line.startswith(f"oneshot retrain {span} --stage {stage} --json"), line
    assert "--set train.steps=5" in line
    assert "--no-failure-notice" not in line

dry_run = raised(dag.get_task("data").execute, context_of(dry_run=True))
assert isinstance(dry_run, AirflowSkipException)
assert "dry run: oneshot retrain" in str(dry_run)

assert ended("evaluate", 0, {"status": "done"}) == {}
assert ended("push", 0, {"status": "done", "pushed_version": 5})["pushed_version"] == 5
assert isinstance(raised(ended, "data", 0, {"status": "nothing_new"}), AirflowSkipException)
assert isinstance(raised(ended, "train", 0, {"status": "busy"}), AirflowRescheduleException)
assert isinstance(raised(ended, "push", 2, None), AirflowFailException)
refused = raised(ended, "data", 2, {"status": "refused", "error": "span 9: no such span"})
assert isinstance(refused, AirflowFailException)
assert "no such span" in str(refused)
for status in ("not_blessed", "blocked"):
    assert isinstance(raised(ended, "evaluate", 3, {"status": status}), AirflowSkipException)
assert type(raised(ended, "train", 1, None)) is AirflowException

if Pod is not StandIn:
    Pod.hook = SimpleNamespace(
        is_in_cluster=False,
        get_namespace=lambda: "here",
        get_xcom_sidecar_container_image=lambda: None,
        get_xcom_sidecar_container_resources=lambda: {},
        get_xcom_sidecar_container_security_context=lambda: None,
    )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as template:
        template.write(_TEMPLATE)
        template.flush()
        task = dag.get_task("train")
        task.pod_template_file = template.name
        pod = task.build_pod_request_obj()
    base, sidecar = pod.spec.containers
    assert base.image == "registry/oneshot:1"
    assert base.command == task.cmds
    assert base.args == task.arguments
    assert pod.metadata.labels["team"] == "vision"
    assert sidecar.name == "airflow-xcom-sidecar"
