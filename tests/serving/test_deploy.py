"""The files for TF Serving, Docker and Kubernetes: each is well formed, and they agree."""

import functools
import re
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_serving.config import model_server_config_pb2

from serving.client.base import DEFAULT_LIMITS, DEFAULT_MODEL
from serving.client.calls import MATCH_ROWS
from serving.client.grpc import DEFAULT_ADDRESS
from serving.client.rest import DEFAULT_URL
from serving.deploy.models_config import (
    CANARY,
    STABLE,
    ModelEntry,
    main,
    models_config,
    read_entry,
)
from serving.saved_model.contract import MODEL_NAME, SIGNATURES
from serving.server.batching import BatchingOptions
from serving.server.config_files import read_batching_parameters, read_model_config
from serving.server.metrics import METRICS_PATH
from serving.server.versions import HostOptions

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "serving" / "deploy"
KUBERNETES = "1.33"
# Flags of tensorflow_model_server (tensorflow_serving/model_servers/main.cc).
FLAGS = frozenset(
    {
        "allow_version_labels_for_unavailable_models",
        "batching_parameters_file",
        "enable_batching",
        "model_config_file",
        "model_config_file_poll_wait_seconds",
        "monitoring_config_file",
        "port",
        "rest_api_port",
        "tensorflow_inter_op_parallelism",
        "tensorflow_intra_op_parallelism",
    }
)


def documents() -> Iterator[dict[str, Any]]:
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in documents() if document["kind"] == kind]


@functools.cache
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


@functools.cache
def container() -> dict[str, Any]:
    return of_kind("Deployment")[0]["spec"]["template"]["spec"]["containers"][0]


def flags(arguments: list[str]) -> dict[str, str]:
    return dict(re.fullmatch(r"--(\w+)=(.+)", argument).groups() for argument in arguments)


def model_list(path: Path = DEPLOY / "models.config") -> Any:
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(path.read_text(encoding="utf-8"), config)
    return config.model_config_list.config


@pytest.mark.parametrize(
    "document",
    list(documents()),
    ids=lambda document: f"{document['kind']}-{document['metadata']['name']}",
)
def test_manifests_fit_the_schemas_of_kubernetes(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_schemas_would_notice_a_misspelt_field() -> None:
    document = of_kind("Deployment")[0]
    document["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_kustomize_takes_every_manifest_and_every_configuration_file() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text(encoding="utf-8"))
    manifests = {str(path.relative_to(DEPLOY)) for path in DEPLOY.glob("kubernetes/*.yaml")}
    assert set(kustomization["resources"]) == manifests
    for generator in kustomization["configMapGenerator"]:
        for name in generator["files"]:
            assert (DEPLOY / name).is_file()
    kinds = {document["kind"] for document in documents()}
    assert {
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "NetworkPolicy",
    } == kinds


def test_config_maps_and_claims_that_are_mounted_exist_and_hold_the_files() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text(encoding="utf-8"))
    maps = {entry["name"]: entry["files"] for entry in kustomization["configMapGenerator"]}
    claims = {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")}
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    files = set()
    for volume in of_kind("Deployment")[0]["spec"]["template"]["spec"]["volumes"]:
        place = mounts.pop(volume["name"])
        if "configMap" in volume:
            files.update(f"{place}/{name}" for name in maps[volume["configMap"]["name"]])
        elif "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in claims
            assert model_list()[0].base_path.startswith(f"{place}/")
    assert mounts == {}
    given_files = {value for value in flags(container()["args"]).values() if value.startswith("/")}
    assert given_files == files


def test_selectors_find_the_pods() -> None:
    labels = of_kind("Deployment")[0]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        *(service["spec"]["selector"] for service in of_kind("Service")),
        of_kind("Deployment")[0]["spec"]["selector"]["matchLabels"],
        of_kind("PodDisruptionBudget")[0]["spec"]["selector"]["matchLabels"],
        of_kind("NetworkPolicy")[0]["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    target = of_kind("HorizontalPodAutoscaler")[0]["spec"]["scaleTargetRef"]
    assert target["name"] == of_kind("Deployment")[0]["metadata"]["name"]


def test_probes_ask_for_the_model_by_its_name() -> None:
    status = f"/v1/models/{MODEL_NAME}"
    probes = {name: container()[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["httpGet"]["path"] for name, probe in probes.items()} == {
        "startup": status,
        "readiness": f"{status}/metadata",
        "liveness": status,
    }
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {"http"}
    # A model may take minutes to load; it must not be killed meanwhile.
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 300
    health = " ".join(compose()["services"]["serving"]["healthcheck"]["test"])
    assert f"GET {status}/metadata HTTP/1.1" in health


def test_ports_are_the_same_everywhere_and_those_that_clients_expect() -> None:
    grpc_port = int(DEFAULT_ADDRESS.rsplit(":", 1)[1])
    rest_port = urlsplit(DEFAULT_URL).port
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"grpc": grpc_port, "http": rest_port}
    for service in of_kind("Service"):
        for port in service["spec"]["ports"]:
            assert (port["port"], port["targetPort"]) == (ports[port["name"]], port["name"])
    for arguments in (container()["args"], compose()["services"]["serving"]["command"]):
        given_flags = flags(arguments)
        assert (int(given_flags["port"]), int(given_flags["rest_api_port"])) == (
            grpc_port,
            rest_port,
        )
    published = compose()["services"]["serving"]["ports"]
    assert published == [f"127.0.0.1:{port}:{port}" for port in (grpc_port, rest_port)]
    policy = of_kind("NetworkPolicy")[0]["spec"]["ingress"][0]["ports"]
    assert {port["port"] for port in policy} == set(ports.values())


def test_flags_exist_and_labels_may_be_read_at_start() -> None:
    for arguments in (container()["args"], compose()["services"]["serving"]["command"]):
        given_flags = flags(arguments)
        assert set(given_flags) <= FLAGS
        assert given_flags["allow_version_labels_for_unavailable_models"] == "true"
        assert given_flags["enable_batching"] == "true"
        assert int(given_flags["model_config_file_poll_wait_seconds"]) > 0


def test_one_version_of_tf_serving_is_pinned() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text(encoding="utf-8"))
    (image,) = kustomization["images"]
    assert container()["image"] == image["name"] == "tensorflow/serving"
    pinned = f"{image['name']}:{image['newTag']}"
    assert compose()["services"]["serving"]["image"] == pinned
    documentation = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert set(re.findall(r"tensorflow/serving:[\w.]+", documentation)) == {pinned}


def test_tf_serving_is_not_older_than_the_tensorflow_that_exports() -> None:
    exporter = re.search(
        r"tensorflow==(\d+)\.(\d+)", (ROOT / "setup.py").read_text(encoding="utf-8")
    )
    server = re.search(r":(\d+)\.(\d+)", compose()["services"]["serving"]["image"])
    assert exporter is not None
    assert server is not None
    # A graph may hold what an older TensorFlow does not know.
    assert tuple(map(int, server.groups())) >= tuple(map(int, exporter.groups()))


def test_the_list_of_models_names_the_model_and_both_labels() -> None:
    (model,) = model_list()
    assert model.name == MODEL_NAME == DEFAULT_MODEL
    assert model.base_path == f"/models/{MODEL_NAME}"
    assert set(model.version_labels) == {STABLE, CANARY}
    assert model.model_version_policy.latest.num_versions == 2
    volumes = compose()["services"]["serving"]["volumes"]
    assert volumes[0] == "${MODELS:-../../output/serving_model}:/models:ro"
    assert flags(compose()["services"]["serving"]["command"])["model_config_file"] == (
        "/config/models.config"
    )
    assert volumes[1] == ".:/config:ro"


def test_the_local_server_reads_the_same_files() -> None:
    setups = read_model_config(DEPLOY / "models.config", defaults=HostOptions())
    assert set(setups) == {MODEL_NAME}
    defaults = BatchingOptions(max_enqueued_batches=1)
    parameters = read_batching_parameters(DEPLOY / "batching_parameters.txt", defaults=defaults)
    assert parameters.max_enqueued_batches > 1
    assert parameters.batch_timeout_micros == 0
    assert parameters.max_batch_size == batching()["max_execution_batch_size"]


def batching() -> dict[str, int]:
    text = (DEPLOY / "batching_parameters.txt").read_text(encoding="utf-8")
    found = re.findall(r"^(\w+) \{ value: (\w+) \}$", text, re.MULTILINE)
    return {name: int(value) if value.isdigit() else value == "true" for name, value in found}


def test_the_largest_requests_of_the_clients_are_taken() -> None:
    values = batching()
    assert values["max_batch_size"] >= max(DEFAULT_LIMITS.images, MATCH_ROWS)
    assert values["enable_large_batch_splitting"] is True
    assert values["max_execution_batch_size"] <= values["max_batch_size"]


def test_batch_threads_are_as_many_as_cores() -> None:
    threads = batching()["num_batch_threads"]
    assert int(container()["resources"]["limits"]["cpu"]) == threads
    assert compose()["services"]["serving"]["cpus"] == threads
    for arguments in (container()["args"], compose()["services"]["serving"]["command"]):
        assert int(flags(arguments)["tensorflow_intra_op_parallelism"]) == threads


def test_requests_of_every_signature_can_be_merged() -> None:
    for name, signature in SIGNATURES.items():
        for side in ("inputs", "outputs"):
            for tensor, described in signature[side].items():
                assert "[N" in described, (name, tensor)


def test_metrics_are_scraped_where_they_are() -> None:
    monitoring = (DEPLOY / "monitoring.config").read_text(encoding="utf-8")
    assert re.search(r"^\s*enable: true$", monitoring, re.MULTILINE)
    (path,) = re.findall(r'^\s*path: "(.+)"$', monitoring, re.MULTILINE)
    assert path == METRICS_PATH
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = prometheus["scrape_configs"]
    assert job["metrics_path"] == path
    (target,) = job["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert flags(compose()["services"][service]["command"])["rest_api_port"] == port
    annotations = of_kind("Deployment")[0]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == path
    assert annotations["prometheus.io/port"] == port


def test_compose_mounts_and_volumes_exist() -> None:
    for service in compose()["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists()
            elif not source.startswith("$"):
                assert source in compose()["volumes"]


def test_containers_have_no_more_rights_than_they_need() -> None:
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    pod = of_kind("Deployment")[0]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    # What may be written is no place that outlives the pod.
    writable = {mount["name"] for mount in container()["volumeMounts"] if not mount.get("readOnly")}
    assert {v["name"] for v in pod["volumes"] if "emptyDir" in v} == writable == {"tmp"}
    for service in compose()["services"].values():
        assert int(service["user"].split(":")[0]) > 0
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        written = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
        assert written in ([], ["prometheus:/prometheus"])
    serving = compose()["services"]["serving"]
    assert int(serving["user"].split(":")[0]) == pod["securityContext"]["runAsUser"]
    assert serving["tmpfs"] == ["/tmp"]


OTHER_MODEL = "model_config_list { config { name: 'other' base_path: '/other' } }"
SAME_MODEL = OTHER_MODEL.replace("other", "siamese")
BOTH_MODELS = OTHER_MODEL.replace("} }", "} config { name: 'siamese' base_path: '/old' } }")


def test_what_a_list_does_not_say_is_nothing() -> None:
    assert read_entry("", "siamese") is None
    assert read_entry(OTHER_MODEL, "siamese") is None
    assert read_entry(SAME_MODEL, "siamese") == ModelEntry()
    with pytest.raises(ValueError, match="not a ModelServerConfig in text format"):
        read_entry("model_config_list {", "siamese")


def test_versions_that_are_not_there_are_not_listed() -> None:
    with pytest.raises(ValueError, match=r"no versions \[2\], only \[1, 3\]"):
        models_config("m", base_path="/m", versions=[1, 3], labels={}, loaded=[1, 2])


@given(
    versions=st.sets(st.integers(1, 2**62), min_size=1, max_size=8),
    data=st.data(),
)
def test_a_written_list_loads_what_has_a_label_what_is_asked_for_and_the_newest(
    versions: set[int], data: st.DataObject
) -> None:
    some = st.sampled_from(sorted(versions))
    labels = {label: data.draw(some) for label in (STABLE, CANARY)}
    besides = data.draw(st.sets(some))
    before = data.draw(st.sampled_from(["", OTHER_MODEL, BOTH_MODELS]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "models.config"
        text = models_config(
            "siamese",
            base_path="/m",
            versions=sorted(versions),
            labels=labels,
            loaded=besides,
            before=before,
        )
        path.write_text(text)
        *others, model = model_list(path)
        assert [other.name for other in others] == (["other"] if before else [])
        assert dict(model.version_labels) == labels
        loaded = list(model.model_version_policy.specific.versions)
        assert loaded == sorted({*labels.values(), *besides, max(versions)})
        assert read_entry(text, "siamese") == ModelEntry(labels, frozenset(loaded))
        options = read_model_config(path, defaults=HostOptions())["siamese"].options
        assert options.labels == labels
        assert {field.name for field in fields(options)} >= {"policy", "labels"}


def test_the_command_writes_the_list_for_a_folder_of_versions(tmp_path: Path) -> None:
    for name in ("1700000000", "1700000005", ".1700000009-x", "notes"):
        (tmp_path / "siamese" / name).mkdir(parents=True)
    file = tmp_path / "models.config"
    folder = str(tmp_path / "siamese")
    assert main([folder, "--stable", "1700000000", "--file", str(file)]) == 0
    (model,) = model_list(file)
    assert (model.name, model.base_path) == ("siamese", "/models/siamese")
    assert dict(model.version_labels) == {STABLE: 1700000000, CANARY: 1700000005}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("folder", "arguments", "reason"),
    [
        ("missing", [], "there is no folder"),
        ("empty", [], "push a model first"),
        ("full", ["--stable", "3"], r"stable: there is no version 3, only \[7\]"),
    ],
)
def test_a_list_that_could_not_be_served_is_not_written(
    folder: str,
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "7").mkdir(parents=True)
    file = tmp_path / "models.config"
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / folder), "--file", str(file), *arguments])
    assert stopped.value.code == 2
    assert re.search(reason, capsys.readouterr().err)
    assert not file.exists()
