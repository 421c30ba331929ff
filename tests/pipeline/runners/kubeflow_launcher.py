"""Runs a compiled pipeline as Kubeflow's launcher does, but in this process.

Every task gets what its container would: its own command line with `{{$}}` replaced by the
executor's input, inputs copied from the object store to the mounted folder, outputs uploaded from
there, and nothing else of what another task wrote.
"""

import importlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

ROOT = "minio://mlpipeline/v2/artifacts"
TYPES = {"STRING": str, "NUMBER_INTEGER": int | float, "BOOLEAN": bool, "STRUCT": dict}
"""Values that the API takes for a parameter, by its type."""


class Launcher:
    """An installation of Kubeflow Pipelines: an object store and the artifacts in it."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.mounts = {"minio://": f"{folder}/minio/"}
        self.output_file = folder / "kfp_outputs" / "output_metadata.json"
        self._ids = iter(range(1, 10_000))

    def run(
        self, spec: Mapping[str, Any], run_id: str, **parameters: Any
    ) -> dict[str, dict[str, Any]]:
        """Runs all tasks with parameters as a user gives them; the artifacts by task and output."""
        declared = spec["root"]["inputDefinitions"]["parameters"]
        assert parameters.keys() <= declared.keys()
        given = {name: of["defaultValue"] for name, of in declared.items()} | parameters
        for name, value in given.items():
            assert isinstance(value, TYPES[declared[name]["parameterType"]]), name
        made: dict[str, dict[str, Any]] = {}
        for name in in_order(spec):
            made[name] = self._run_task(spec, name, made, run_id, given)
        return made

    def local(self, uri: str) -> Path:
        """Where an artifact lies in the object store."""
        return self.store / uri.removeprefix("minio://")

    def _run_task(
        self,
        spec: Mapping[str, Any],
        name: str,
        made: Mapping[str, Mapping[str, Any]],
        run_id: str,
        given: Mapping[str, Any],
    ) -> dict[str, Any]:
        task = spec["root"]["dag"]["tasks"][name]
        component = spec["components"][task["componentRef"]["name"]]
        container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        inputs = task.get("inputs", {})
        artifacts = {
            key: {
                "artifacts": [
                    made[source["taskOutputArtifact"]["producerTask"]][
                        source["taskOutputArtifact"]["outputArtifactKey"]
                    ]
                ]
            }
            for key, source in inputs.get("artifacts", {}).items()
        }
        outputs = {
            key: {
                "artifacts": [
                    {
                        "uri": f"{ROOT}/{run_id}/{name}/{key}",
                        "type": definition["artifactType"],
                        "metadata": definition.get("metadata", {}),
                    }
                ]
            }
            for key, definition in component.get("outputDefinitions", {})
            .get("artifacts", {})
            .items()
        }
        invocation = {
            "inputs": {
                "parameterValues": {
                    key: self._value(source, given, run_id)
                    for key, source in inputs.get("parameters", {}).items()
                },
                "artifacts": artifacts,
            },
            "outputs": {"artifacts": outputs, "outputFile": str(self.output_file)},
        }
        json_format.ParseDict(invocation, pipeline_spec_pb2.ExecutorInput())
        for listed in artifacts.values():
            self._download(listed["artifacts"][0]["uri"])
        for listed in outputs.values():
            self._mounted(listed["artifacts"][0]["uri"]).parent.mkdir(parents=True, exist_ok=True)
        arguments = [arg.replace("{{$}}", json.dumps(invocation)) for arg in container["args"]]
        code = run_command(container["command"], arguments, self.mounts)
        assert code == 0, f"{name} ended with exit code {code}"
        published = {
            key: self._publish(listed["artifacts"][0], key) for key, listed in outputs.items()
        }
        # The container is gone, and what it had on its disk.
        shutil.rmtree(self.mounts["minio://"], ignore_errors=True)
        shutil.rmtree(self.output_file.parent)
        return published

    def _value(self, source: Mapping[str, Any], given: Mapping[str, Any], run_id: str) -> Any:
        if "componentInputParameter" in source:
            return given[source["componentInputParameter"]]
        constant = source["runtimeValue"]["constant"]
        return run_id if constant == "{{$.pipeline_job_uuid}}" else constant

    def _publish(self, artifact: dict[str, Any], key: str) -> dict[str, Any]:
        written = json.loads(self.output_file.read_text())["artifacts"][key]["artifacts"][0]
        assert written["uri"] == artifact["uri"]
        written_to, stored = self._mounted(artifact["uri"]), self.local(artifact["uri"])
        if written_to.is_dir():
            shutil.copytree(written_to, stored)
        elif written_to.exists():
            stored.parent.mkdir(parents=True)
            shutil.copyfile(written_to, stored)
        metadata = artifact["metadata"] | written.get("metadata", {})
        # Kubeflow's launcher fails on it.
        assert None not in metadata.values()
        return artifact | {"name": str(next(self._ids)), "metadata": metadata}

    def _download(self, uri: str) -> None:
        if self.local(uri).exists():
            shutil.copytree(self.local(uri), self._mounted(uri))

    def _mounted(self, uri: str) -> Path:
        return Path(self.mounts["minio://"] + uri.removeprefix("minio://"))


def run_command(command: list[str], arguments: list[str], mounts: Mapping[str, str]) -> int:
    """`python -m MODULE ARGUMENTS`, without a process of its own."""
    assert command[:2] == ["python", "-m"]
    (module,) = command[2:]
    code: int = importlib.import_module(module).main(arguments, mounts=mounts)
    return code


def in_order(spec: Mapping[str, Any]) -> Iterator[str]:
    """Names of the tasks, each behind those that it depends on."""
    waiting = {
        name: set(task.get("dependentTasks", []))
        for name, task in spec["root"]["dag"]["tasks"].items()
    }
    while waiting:
        ready = sorted(name for name, needs in waiting.items() if not needs & set(waiting))
        assert ready, f"a circle among {sorted(waiting)}"
        yield from ready
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}
