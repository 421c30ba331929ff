"""The Kubernetes manifests of Beam's job servers: well formed, and they agree with the code."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipeline.cli.main import command_parser
from pipeline.settings import BeamSettings

BEAM = Path(__file__).parents[2] / "pipeline" / "deploy" / "beam"
KUBERNETES = "1.33"


def documents(engine: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((BEAM / f"{engine}.yaml").read_text(encoding="utf-8")))


def pods(engine: str) -> list[dict[str, Any]]:
    found = [one for one in documents(engine) if one["kind"] == "Deployment"]
    return [one["spec"]["template"]["spec"] for one in found]


@pytest.mark.parametrize("engine", ["flink", "spark"])
def test_a_manifest_fits_the_schemas_of_kubernetes(engine: str) -> None:
    for document in documents(engine):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("engine", ["flink", "spark"])
def test_services_select_pods_and_reach_ports_of_theirs(engine: str) -> None:
    ports = {}
    for one in documents(engine):
        if one["kind"] == "Deployment":
            template = one["spec"]["template"]
            assert one["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
            listed = [port for c in template["spec"]["containers"] for port in c.get("ports", ())]
            ports[template["metadata"]["labels"]["app"]] = {p["containerPort"] for p in listed}
    for one in documents(engine):
        if one["kind"] == "Service":
            wanted = {port["port"] for port in one["spec"]["ports"]}
            assert wanted <= ports[one["spec"]["selector"]["app"]]


@pytest.mark.parametrize("engine", ["flink", "spark"])
def test_the_workers_are_a_pool_of_ours_where_the_settings_say(engine: str) -> None:
    text = (BEAM / f"{engine}.yaml").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if "beam: {" in line)
    settings = BeamSettings(**yaml.safe_load(line.lstrip("# "))["beam"])
    (pod,) = (pod for pod in pods(engine) if len(pod["containers"]) == 2)
    (engine_container, workers) = pod["containers"]
    options = command_parser().parse_args(workers["args"])
    assert settings.worker_pool == f"localhost:{options.port}"
    assert engine_container["volumeMounts"] == workers["volumeMounts"]
    server = next(one for one in documents(engine) if one["metadata"]["name"] == f"beam-{engine}")
    assert settings.job_endpoint == f"beam-{engine}:{server['spec']['ports'][0]['port']}"


@pytest.mark.parametrize("engine", ["flink", "spark"])
def test_the_job_server_is_of_the_beam_that_is_installed(engine: str) -> None:
    (image,) = (
        container["image"]
        for pod in pods(engine)
        for container in pod["containers"]
        if "job_server" in container["image"]
    )
    assert image.endswith(f":{version('apache-beam')}")
