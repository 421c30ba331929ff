"""Compiles the graph for Kubeflow Pipelines and Vertex AI (pipeline spec 2.1)."""

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import yaml

from data_ingest.errors import InputError
from data_ingest.sources.dataset import Dataset
from data_ingest.sources.kinds import Kind
from pipeline.config import PipelineConfig
from pipeline.dag import create_pipeline
from pipeline.runners.cluster import NEWEST, Cluster
from pipeline.runners.kubeflow_parameters import (
    EXAMPLES_NODE,
    HTML_TITLE,
    PROMOTE_NODE,
    REPORT_NODE,
    SERVED_NODE,
    TRAINER_NODE,
    definitions,
)
from pipeline.runners.kubeflow_release import Promote, Report
from pipeline.settings import StepResources

STEP: Final = ("python", "-m", "pipeline.runners.kubeflow_step")
_GKE_GPU_LABEL: Final = "cloud.google.com/gke-accelerator"
_UNCACHED: Final = (EXAMPLES_NODE, SERVED_NODE, PROMOTE_NODE)
_RUN_ID: Final = "{{$.pipeline_job_uuid}}"


@dataclass(frozen=True)
class CompiledPipeline:
    """What is written for the orchestrator."""

    job: dict[str, Any]
    """PipelineJob: `pipelineSpec`, `runtimeConfig`, `displayName`, `labels`."""
    platform: dict[str, Any]
    """PlatformSpec: what is Kubernetes' own (volumes, kinds of nodes); empty if nothing is."""

    @property
    def spec(self) -> dict[str, Any]:
        """PipelineSpec."""
        spec: dict[str, Any] = self.job["pipelineSpec"]
        return spec

    @property
    def defaults(self) -> dict[str, Any]:
        """What a run takes for its parameters, by name, where it is given nothing else."""
        declared = self.spec["root"]["inputDefinitions"]["parameters"]
        return {name: of.get("defaultValue") for name, of in declared.items()}

    def yaml(self) -> str:
        """PipelineSpec and, behind it, PlatformSpec where there is one: for Kubeflow's own tools.

        Vertex AI takes the same as a pipeline template.
        """
        documents = filter(None, (self.spec, self.platform))
        return yaml.safe_dump_all(documents, sort_keys=True, width=100)

    def json(self) -> str:
        """PipelineJob, as Vertex AI's API takes it."""
        return json.dumps(self.job, indent=2, sort_keys=True) + "\n"


def compile_pipeline(
    *,
    config: PipelineConfig,
    dataset: Dataset,
    protocols: AbstractSet[tuple[str, int]],
    cluster: Cluster,
) -> CompiledPipeline:
    """Translates the graph of `pipeline.dag`.

    Args:
      config: the whole configuration.
      dataset: the images, as the containers see them.
      protocols: the (protocol, way) trials that the images can make.
      cluster: where it is to run; `check_cluster` has passed it.

    Raises:
      InputError: kfp-pipeline-spec is not installed, without which TFX has no Kubeflow runner; or
        Beam refuses the options of a Dataflow job.
    """
    try:
        from kfp.pipeline_spec import pipeline_spec_pb2
    except ImportError as error:
        raise InputError(
            "oneshot compile needs the package kfp-pipeline-spec: "
            "`pip install 'siamese-oneshot[kubeflow]'`"
        ) from error
    from google.protobuf import json_format
    from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner

    from pipeline.runners.beam import check_dataflow

    if config.beam.runner == "dataflow":
        check_dataflow(config.beam)
    output = cluster.output.rstrip("/")
    pipeline = create_pipeline(
        config=config,
        dataset=dataset,
        protocols=protocols,
        pipeline_root=cluster.pipeline_root or "",
        serving_model_dir=f"{output}/serving_model/{config.push.model_name}",
        checkpoint_dir=f"{output}/checkpoints",
        earlier_models="served",
        last=partial(_last_steps, config, cluster),
    )
    nodes = {node.id: node for node in pipeline.components}
    if config.beam.runner != "local":
        # Its images lie in a mounted folder, which workers elsewhere do not have.
        nodes[EXAMPLES_NODE].executor_spec.beam_pipeline_args = type(config.beam)().pipeline_args()
    job = kubeflow_v2_dag_runner.KubeflowV2DagRunner(
        config=kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(
            default_image=cluster.image, default_commands=list(STEP), use_pipeline_spec_2_1=True
        )
    ).run(pipeline, write_out=False)
    spec = job["pipelineSpec"]
    _complete(spec, config, cluster, dataset.kind)
    _declare_parameters(spec, config, dataset, cluster)
    # There and back: a field that the specification does not know is an error here.
    message = json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    job["pipelineSpec"] = json_format.MessageToDict(message)
    return CompiledPipeline(job, {} if cluster.vertex else _platform(spec, config, cluster))


def _last_steps(config: PipelineConfig, cluster: Cluster, nodes: Mapping[str, Any]) -> list[Any]:
    """What a process of ours does itself at the end: the label, if it can be moved; the report."""
    examples, trainer, evaluator, gate, pusher = (
        nodes[name].outputs
        for name in (EXAMPLES_NODE, TRAINER_NODE, "Evaluator", "ServingGate", "Pusher")
    )
    report = Report(
        examples=examples["examples"],
        model=trainer["model"],
        model_run=trainer["model_run"],
        evaluation=evaluator["evaluation"],
        blessing=evaluator["blessing"],
        infra_blessing=gate["blessing"],
        pushed_model=pusher["pushed_model"],
        evaluate=config.evaluate.model_dump_json(),
        run_id=_RUN_ID,
    )
    if "://" in cluster.output:
        return [report]
    promote = Promote(
        pushed_model=pusher["pushed_model"],
        output=cluster.output,
        push=config.push.model_dump_json(),
        label=config.retrain.label or "",
        run_id=_RUN_ID,
    )
    return [promote, report]


def _declare_parameters(
    spec: dict[str, Any], config: PipelineConfig, dataset: Dataset, cluster: Cluster
) -> None:
    places = {}
    if cluster.spans_folder is not None:
        places["span"] = NEWEST
    elif dataset.source == "folder":
        places["data"] = str(dataset.base / dataset.inputs["images"])
    tasks = spec["root"]["dag"]["tasks"]
    declared = spec["root"].setdefault("inputDefinitions", {}).setdefault("parameters", {})
    for name, asked, definition in definitions(config, places):
        steps = [step for step in asked if step in tasks]
        if steps == [SERVED_NODE]:
            continue
        declared[name] = definition
        for step in steps:
            inputs = spec["components"][step]["inputDefinitions"]["parameters"]
            inputs[name] = {"parameterType": definition["parameterType"]}
            tasks[step]["inputs"]["parameters"][name] = {"componentInputParameter": name}


def _accelerator(cluster: Cluster) -> str:
    gpu = cluster.gpu or ""
    if cluster.vertex:
        return gpu.upper().replace("-", "_")
    # Kubernetes counts GPUs of a maker; of which model they are is said by labels of the nodes.
    return gpu if "/" in gpu else "nvidia.com/gpu"


def _complete(spec: dict[str, Any], config: PipelineConfig, cluster: Cluster, kind: Kind) -> None:
    """Says what TFX's compiler leaves unsaid.

    Raises:
      InputError: the configuration names a step that there is not.
    """
    steps = spec["root"]["dag"]["tasks"].keys()
    for name in config.kubeflow.resources:
        if name not in ("default", *steps):
            raise InputError(
                f"kubeflow.resources.{name}: there is no such step; there are default, "
                + ", ".join(sorted(steps))
            )
    if cluster.pipeline_root:
        spec["defaultPipelineRoot"] = cluster.pipeline_root
    container = spec["deploymentSpec"]["executors"][f"{EXAMPLES_NODE}_executor"]["container"]
    # The hook finds the span by modification times, and open-source Kubeflow ignores it. The step
    # does it itself, so the node runs every time: the cache would ask for its parameters only.
    container.pop("lifecycle", None)
    if cluster.spans_folder is not None:
        window = f"--spans_window={config.retrain.window}"
        container["args"] += [f"--spans_folder={cluster.spans_folder}", window]
    html = {"schemaTitle": HTML_TITLE, "schemaVersion": "0.0.1"}
    spec["components"][REPORT_NODE]["outputDefinitions"]["artifacts"]["report"] = {
        "artifactType": html
    }
    executors = spec["deploymentSpec"]["executors"]
    checked = executors[f"{SERVED_NODE}_executor"]["container"]["args"]
    checked += [f"--checked_train={config.train.model_dump_json()}", f"--checked_kind={kind}"]
    for name, task in spec["root"]["dag"]["tasks"].items():
        container = executors[f"{name}_executor"]["container"]
        resources = _resources(config.kubeflow.of_step(name))
        if name == TRAINER_NODE and cluster.gpu is not None:
            resources["accelerator"] = {"type": _accelerator(cluster), "count": str(cluster.gpus)}
        if resources:
            container["resources"] = resources
        for variable, value in config.kubeflow.environment.items():
            container.setdefault("env", []).append({"name": variable, "value": value})
        task["cachingOptions"] = {"enableCache": name not in _UNCACHED}
        if config.retrain.attempts > 1:
            task["retryPolicy"] = {
                "maxRetryCount": config.retrain.attempts - 1,
                "backoffDuration": f"{config.retrain.backoff_seconds:g}s",
                "backoffFactor": 2.0,
            }


def _resources(step: StepResources) -> dict[str, Any]:
    """As Kubeflow's SDK writes them: text, and figures for older installations and Vertex AI."""
    amounts = {
        "CpuRequest": step.cpu,
        "CpuLimit": step.cpu_limit,
        "MemoryRequest": step.memory,
        "MemoryLimit": step.memory_limit,
    }
    resources: dict[str, Any] = {}
    for name, amount in amounts.items():
        if amount is not None:
            resources[f"resource{name}"] = amount
            figure = _cpus(amount) if name.startswith("Cpu") else _gigabytes(amount)
            resources[name[0].lower() + name[1:]] = figure
    return resources


def _cpus(amount: str) -> float:
    return float(amount[:-1]) / 1000 if amount.endswith("m") else float(amount)


def _gigabytes(amount: str) -> float:
    digits = amount.rstrip("KMGTPEi")
    unit = amount[len(digits) :]
    base = 1024.0 if unit.endswith("i") else 1000.0
    return float(int(digits) * base ** " KMGTPE".index(unit[:1] or " ")) / 1e9


def _platform(spec: Mapping[str, Any], config: PipelineConfig, cluster: Cluster) -> dict[str, Any]:
    """What is Kubernetes' own, by kubernetes_executor_config.proto.

    Nothing is shared between the steps: YAML would point at the first instead of repeating it.
    """
    executors: dict[str, dict[str, Any]] = {}
    for name in spec["root"]["dag"]["tasks"]:
        step, executor = config.kubeflow.of_step(name), dict[str, Any]()
        if cluster.volume is not None:
            mount = {
                "mountPath": str(cluster.volume.mount_path),
                **_constant("constant", "pvcNameParameter", cluster.volume.claim),
            }
            executor["pvcMount"] = [mount]
        labels = dict(step.node_selector)
        if name == TRAINER_NODE and cluster.gpu is not None and "/" not in cluster.gpu:
            labels[_GKE_GPU_LABEL] = cluster.gpu
        if labels:
            executor["nodeSelector"] = {"labels": labels}
        for toleration in step.tolerations:
            taint = toleration.model_dump(exclude_none=True, by_alias=True)
            executor.setdefault("tolerations", []).append(taint)
        for variable, place in config.kubeflow.secrets.items():
            secret, _, key = place.partition("/")
            taken = {
                "keyToEnv": [{"secretKey": key, "envVar": variable}],
                **_constant("secretName", "secretNameParameter", secret),
            }
            executor.setdefault("secretAsEnv", []).append(taken)
        if executor:
            executors[f"{name}_executor"] = executor
    if not executors:
        return {}
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}


def _constant(before: str, now: str, value: str) -> dict[str, Any]:
    """A name as installations of either age read it."""
    return {before: value, now: {"runtimeValue": {"constant": value}}}


def recurring_run(compiled: CompiledPipeline, cron: str, *, name: str) -> dict[str, Any]:
    """Body of `POST /apis/v2beta1/recurringruns` of open-source Kubeflow Pipelines.

    One run at a time, and none for the times at which the cluster was away.

    Args:
      compiled: what is run; it is part of the definition, nothing is uploaded before.
      cron: five fields, in the cluster's time zone.
      name: shown in the list of recurring runs.
    """
    body: dict[str, Any] = {
        "display_name": name,
        "mode": "ENABLE",
        "max_concurrency": "1",
        "no_catchup": True,
        # Kubeflow's first field is the second.
        "trigger": {"cron_schedule": {"cron": f"0 {cron}"}},
        "pipeline_spec": (
            {"pipeline_spec": compiled.spec, "platform_spec": compiled.platform}
            if compiled.platform
            else compiled.spec
        ),
        "runtime_config": {"parameters": compiled.defaults},
    }
    if root := compiled.spec.get("defaultPipelineRoot"):
        body["runtime_config"]["pipeline_root"] = root
    return body


def vertex_schedule(
    compiled: CompiledPipeline, cron: str, *, name: str, project: str, location: str
) -> dict[str, Any]:
    """Body of `POST …/projects/PROJECT/locations/LOCATION/schedules` of Vertex AI.

    One run at a time; a time at which the last one still runs is left out.
    """
    return {
        "displayName": name,
        "cron": cron,
        "maxConcurrentRunCount": "1",
        "allowQueueing": False,
        "createPipelineJobRequest": {
            "parent": f"projects/{project}/locations/{location}",
            "pipelineJob": {
                **compiled.job,
                "runtimeConfig": {
                    **compiled.job["runtimeConfig"],
                    "parameterValues": compiled.defaults,
                },
            },
        },
    }
