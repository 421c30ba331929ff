"""The graph compiled for Kubeflow Pipelines and Vertex AI: what is written."""

import json
import sys
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
from google.cloud import aiplatform_v1
from google.cloud.aiplatform.utils.pipeline_utils import PipelineRuntimeConfigBuilder
from google.protobuf import json_format
from kfp import components, dsl, kubernetes
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from data_ingest.settings import PairSettings
from data_ingest.spans.store import SpanStore
from pipeline.cli.main import main
from tests.pipeline.runners.kubeflow_cluster import Cluster, documents
from tests.pipeline.tiny import TINY, as_options

DATAFLOW = (
    "beam.runner=dataflow",
    "beam.project=project-1",
    "beam.region=europe-west4",
    "beam.temp_location=gs://bucket/temp",
    "beam.worker_image=registry/oneshot-beam",
)
OF_THE_CLUSTER = {
    "kubeflow__resources": "{default: {cpu: 500m, memory: 2Gi, node_selector: {disk: ssd}}, "
    "Trainer: {cpu_limit: 4, memory_limit: 16G, tolerations: [{key: gpu, operator: Exists, effect: "
    "NoExecute, toleration_seconds: 5}]}}",
    "kubeflow__environment": '{HTTPS_PROXY: "http://proxy:3128"}',
    "kubeflow__secrets": "{ONESHOT_METADATA_URL: oneshot/url}",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def compiled(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For open-source Kubeflow, with a GPU and a schedule."""
    out = tmp_path_factory.mktemp("compiled") / "oneshot.yaml"
    gpu = ("--gpu=nvidia-tesla-t4", "--gpus=2")
    assert cluster.compile(out, *gpu, "--schedule=30 3 * * 1-5", "--image=registry/oneshot:1") == 0
    return out


def containers(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    executors = spec["deploymentSpec"]["executors"]
    return {name.removesuffix("_executor"): value["container"] for name, value in executors.items()}


def test_the_sdk_of_kubeflow_accepts_the_file_and_its_parameters(
    compiled: Path, cluster: Cluster
) -> None:
    component = components.load_component_from_file(str(compiled))
    assert component.name == "oneshot"
    assert component.pipeline_spec.schema_version == "2.1.0"
    assert set(component.platform_spec.platforms) == {"kubernetes"}
    inputs = component.component_spec.inputs
    assert {name: (of.type, of.default, of.optional) for name, of in inputs.items()} == {
        "data": ("String", str(cluster.images), True),
        "preset": ("String", "fast", True),
        "steps": ("Integer", 6, True),
        "seed": ("Integer", 1, True),
        "warm_start": ("Boolean", False, True),
        "thresholds": ("Dict", {"auc": {"min": 0.05}}, True),
        "label": ("String", "stable", True),
    }


def test_all_nodes_are_containers_of_the_image_for_there_are_no_resolvers(compiled: Path) -> None:
    spec, _ = documents(compiled)
    assert set(containers(spec)) == {
        "PairExampleGen",
        "StatisticsGen",
        "CuratedSchemaGen",
        "ExampleValidator",
        "ServedModel",
        "Trainer",
        "Evaluator",
        "ServingGate",
        "Pusher",
        "Promote",
        "Report",
    }
    assert {container["image"] for container in containers(spec).values()} == {"registry/oneshot:1"}
    assert all("lifecycle" not in container for container in containers(spec).values())


def test_the_trainer_alone_gets_gpus_and_nodes_that_have_them(compiled: Path) -> None:
    spec, platform = documents(compiled)
    resources = {name: value.get("resources") for name, value in containers(spec).items()}
    assert resources.pop("Trainer") == {"accelerator": {"type": "nvidia.com/gpu", "count": "2"}}
    assert set(resources.values()) == {None}
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    selectors = {name: value.get("nodeSelector") for name, value in executors.items()}
    labels = {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}
    assert selectors.pop("Trainer_executor") == {"labels": labels}
    assert set(selectors.values()) == {None}


def test_every_container_mounts_the_volume(compiled: Path, cluster: Cluster) -> None:
    spec, platform = documents(compiled)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(spec["deploymentSpec"]["executors"])
    for executor in executors.values():
        config = json_format.ParseDict(
            executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        )
        (mount,) = config.pvc_mount
        assert mount.mount_path == str(cluster.volume)
        assert mount.pvc_name_parameter.runtime_value.constant.string_value == "oneshot"


def test_what_depends_on_more_than_its_parameters_is_never_cached(compiled: Path) -> None:
    spec, _ = documents(compiled)
    tasks = spec["root"]["dag"]["tasks"]
    uncached = {name for name, task in tasks.items() if not task["cachingOptions"]}
    assert uncached == {"PairExampleGen", "ServedModel", "Promote"}
    assert {task["retryPolicy"]["maxRetryCount"] for task in tasks.values()} == {2}


def given_to(spec: dict[str, Any]) -> dict[str, set[str]]:
    """Parameters of a run by the steps that get them: a part of their cache key."""
    return {
        name: {
            source["componentInputParameter"]
            for source in task.get("inputs", {}).get("parameters", {}).values()
            if "componentInputParameter" in source
        }
        for name, task in spec["root"]["dag"]["tasks"].items()
    }


def test_a_parameter_is_part_of_the_cache_key_of_what_depends_on_it(compiled: Path) -> None:
    spec, _ = documents(compiled)
    given = given_to(spec)
    # Never cached; it checks them all at once.
    options = given.pop("ServedModel")
    assert options == {"preset", "steps", "seed", "warm_start", "thresholds", "label"}
    assert {name: names for name, names in given.items() if names} == {
        "PairExampleGen": {"data"},
        "Trainer": {"preset", "steps", "seed", "warm_start"},
        "Evaluator": {"thresholds"},
        "Promote": {"label"},
        "Report": {"thresholds"},
    }


def test_a_pipeline_on_spans_takes_the_newest_or_a_number(cluster: Cluster, tmp_path: Path) -> None:
    store = SpanStore(cluster.output / "spans")
    store.land(7, [cluster.images], pairs=PairSettings(ways=(3,)), max_rejected_share=0.0)
    out = tmp_path / "oneshot.yaml"
    sets = as_options(TINY)
    where = [f"--volume=oneshot:{cluster.volume}", f"--output={cluster.output}"]
    assert main(["compile", f"--out={out}", "--spans", *where, *sets]) == 0
    spec, _ = documents(out)
    assert given_to(spec)["PairExampleGen"] == {"span"}
    assert spec["root"]["inputDefinitions"]["parameters"]["span"]["defaultValue"] == "newest"
    assert f"--spans_folder={cluster.output}/spans" in containers(spec)["PairExampleGen"]["args"]


def test_steps_get_what_kubeflows_own_sdk_would_ask_for(cluster: Cluster, tmp_path: Path) -> None:
    @dsl.container_component
    def step() -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="image", command=["command"])

    @dsl.pipeline(name="expected")
    def expected() -> None:
        for is_trainer in (False, True):
            task = step()
            task.set_cpu_request("500m").set_memory_request("2Gi")
            task.set_env_variable("HTTPS_PROXY", "http://proxy:3128")
            kubernetes.mount_pvc(task, "oneshot", str(cluster.volume))
            kubernetes.use_secret_as_env(task, "oneshot", {"url": "ONESHOT_METADATA_URL"})
            kubernetes.add_node_selector(task, "disk", "ssd")
            if is_trainer:
                task.set_cpu_limit("4").set_memory_limit("16G")
                kubernetes.add_toleration(task, "gpu", "Exists", None, "NoExecute", 5)

    out = tmp_path / "oneshot.yaml"
    assert cluster.compile(out, **OF_THE_CLUSTER) == 0
    ours, theirs = (
        {
            "containers": json_format.ParseDict(
                deployment, pipeline_spec_pb2.PipelineDeploymentConfig()
            ).executors,
            "platform": platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"],
        }
        for deployment, platform in (
            (documents(out)[0]["deploymentSpec"], documents(out)[1]),
            (
                json_format.MessageToDict(expected.pipeline_spec.deployment_spec),
                json_format.MessageToDict(expected.platform_spec),
            ),
        )
    )
    assert ours["platform"].keys() == ours["containers"].keys()
    for name in ours["platform"]:
        like = "exec-step-2" if name == "Trainer_executor" else "exec-step"
        mine, other = ours["containers"][name].container, theirs["containers"][like].container
        assert mine.resources == other.resources
        assert list(mine.env) == list(other.env)
        configs = [
            json_format.ParseDict(found, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
            for found in (ours["platform"][name], theirs["platform"][like])
        ]
        # The SDK says what holds anyway.
        configs[1].secret_as_env[0].ClearField("optional")
        assert configs[0] == configs[1]


def test_the_recurring_run_is_one_that_the_api_takes(compiled: Path) -> None:
    body = json.loads(compiled.with_name("oneshot.schedule.json").read_text())
    client = kfp_server_api.ApiClient()
    run = client._ApiClient__deserialize(body, "V2beta1RecurringRun")
    assert client.sanitize_for_serialization(run) == body
    assert run.trigger.cron_schedule.cron == "0 30 3 * * 1-5"
    assert run.no_catchup is True
    assert run.max_concurrency == "1"
    spec, platform = documents(compiled)
    assert body["pipeline_spec"] == {"pipeline_spec": spec, "platform_spec": platform}
    parameters = body["runtime_config"]["parameters"]
    assert parameters.keys() == spec["root"]["inputDefinitions"]["parameters"].keys()
    assert parameters["thresholds"] == {"auc": {"min": 0.05}}


def test_vertex_ai_gets_a_job_with_its_own_names(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "oneshot.json"
    schedule = ("--schedule=0 3 * * *", "--project=p", "--location=europe-west4")
    machine = ("--set", "kubeflow.resources={default: {cpu_limit: 4, memory_limit: 16G}}")
    assert cluster.for_vertex(out, "--gpu=nvidia-tesla-t4", *schedule, *machine) == 0
    job = json_format.Parse(out.read_text(), pipeline_spec_pb2.PipelineJob())
    assert job.runtime_config.gcs_output_directory == "gs://bucket/runs"
    spec = json.loads(out.read_text())["pipelineSpec"]
    resources = containers(spec)["Trainer"]["resources"]
    assert resources["accelerator"] == {"type": "NVIDIA_TESLA_T4", "count": "1"}
    assert (resources["cpuLimit"], resources["memoryLimit"]) == (4, 16)
    # There is no volume with labels to move.
    assert "Promote" not in containers(spec)
    assert "label" not in spec["root"]["inputDefinitions"]["parameters"]
    tasks = spec["root"]["dag"]["tasks"]
    base = tasks["PairExampleGen"]["inputs"]["parameters"]["input_base"]
    assert base["runtimeValue"]["constant"] == "/gcs/bucket/oneshot"
    body = json.loads((tmp_path / "oneshot.schedule.json").read_text())
    parsed = aiplatform_v1.Schedule()
    json_format.ParseDict(body, aiplatform_v1.Schedule.pb(parsed))
    request = parsed.create_pipeline_job_request
    assert request.parent == "projects/p/locations/europe-west4"
    assert request.pipeline_job.pipeline_spec["pipelineInfo"]["name"] == "oneshot"
    assert request.pipeline_job.runtime_config.parameter_values["steps"] == 6
    # What PipelineJob(parameter_values=...) does.
    builder = PipelineRuntimeConfigBuilder.from_job_spec_json(json.loads(out.read_text()))
    builder.update_runtime_parameters({"steps": 100, "thresholds": {"auc": {"min": 0.9}}})
    values = builder.build()["parameterValues"]
    assert values == {"steps": 100, "thresholds": {"auc": {"min": 0.9}}}


def test_beam_runs_elsewhere_but_where_the_images_are_mounted(
    cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "oneshot.yaml"
    sets = [part for setting in DATAFLOW for part in ("--set", setting)]
    assert cluster.compile(out, "--pipeline-root=gs://b/runs", *sets) == 0
    spec, _ = documents(out)
    for name in ("StatisticsGen", "Evaluator"):
        args = containers(spec)[name]["args"]
        assert "--runner=DataflowRunner" in args
        assert "--sdk_container_image=registry/oneshot-beam" in args
        assert "--sdk_container_image=none" not in args
    assert "--runner=FnApiRunner" in containers(spec)["PairExampleGen"]["args"]
    assert spec["defaultPipelineRoot"] == "gs://b/runs"


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (["--format=json"], "--vertex"),
        (["--volume=oneshot"], "CLAIM:/mount/path"),
        (["--volume=oneshot:/elsewhere"], "--volume CLAIM:/mount/path"),
        (["--output=s3://bucket/output"], "gs://"),
        (["--pipeline-root=/mnt/runs"], "minio://"),
        (["--map=/nowhere=/mnt"], "--map"),
        (["--gpus=2"], "--gpu"),
        (["--gpu=nvidia-tesla-t4", "--gpus=0"], "--gpus"),
        (["--schedule=daily"], "five fields"),
        (["--schedule=0 3 * * $"], "day of the week"),
        (["--set", DATAFLOW[0]], "needs project, region, temp_location, worker_image"),
        ([part for setting in DATAFLOW for part in ("--set", setting)], "--pipeline-root"),
        (["--spans"], "--data and --spans"),
        (["--vertex", "--format=yaml"], "PersistentVolumeClaims"),
        (["--set", "kubeflow.resources={Traner: {cpu: 2}}"], "there are default, CuratedSchemaGen"),
        (
            ["--set", "kubeflow.resources={Trainer: {memory: 2 GB}}"],
            "kubeflow.resources.Trainer.memory",
        ),
        (["--set", "kubeflow.resources={Trainer: {tolerations: [{}]}}"], "operator: Exists"),
        (["--set", "kubeflow.secrets={TOKEN: oneshot}"], "kubeflow.secrets.TOKEN"),
        (["--set", "kubeflow.environment={A-B: c}"], "kubeflow.environment.A-B"),
    ],
)
def test_what_cannot_work_in_the_cluster_is_refused_here(
    cluster: Cluster,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    needed: str,
) -> None:
    assert cluster.compile(tmp_path / "oneshot.yaml", *options) == 2
    assert needed in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "setting",
    [
        "kubeflow.secrets={TOKEN: oneshot/token}",
        "kubeflow.resources={Trainer: {node_selector: {disk: ssd}}}",
        "kubeflow.resources={default: {tolerations: [{operator: Exists}]}}",
    ],
)
def test_what_only_kubernetes_has_is_refused_for_vertex_ai(
    cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str], setting: str
) -> None:
    assert cluster.for_vertex(tmp_path / "oneshot.json", "--set", setting) == 2
    assert setting.partition("=")[0] in capfd.readouterr().err


def test_images_that_only_this_machine_has_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["compile", f"--out={tmp_path}/oneshot.yaml", "--output=/mnt/x", "--volume=x:/mnt"]
    assert main([*argv, "--set", "dataset.source=synthetic"]) == 2
    assert "--data" in capfd.readouterr().err


def test_without_its_package_it_says_which_one_to_install(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "kfp.pipeline_spec", None)
    assert cluster.compile(tmp_path / "oneshot.yaml") == 2
    assert "siamese-oneshot[kubeflow]" in capfd.readouterr().err
