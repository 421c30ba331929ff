"""Runs a year of daily retrainings with a daily `oneshot gc`: how disk and history grow.

    python -m benchmarks.year --output /tmp/year --days 365

One real run on generated glyphs is made first. Every day then is `run_pipeline` as `oneshot run`
calls it, with new pairs, so that nothing comes from the cache: TFX's launchers, drivers, Resolvers
and publishers write to ML Metadata, the real Pusher pushes, labels move, and `oneshot gc` cleans
up. Only the executors of the other components are replaced, by copying what the real run made; and
the clock is, so that a day passes at once. Called again it continues where it was. At the end two
runs with nothing replaced tell whether the cache and the baseline still work.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import ml_metadata
from ml_metadata.proto import metadata_store_pb2
from tfx import types
from tfx.dsl.components.base import executor_spec
from tfx.experimental.pipeline_testing import base_stub_executor
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.proto.orchestration import pipeline_pb2
from tfx.utils import path_utils

import pipeline.runners.local
from data_ingest.sources.resolve import resolve
from pipeline.cli.main import main as oneshot
from pipeline.config import PipelineConfig, load_config
from pipeline.releases.cleanup import collect_garbage
from pipeline.releases.promotion import Promotions
from pipeline.runs.history import RunHistory, RunRecord
from pipeline.runs.metadata_store import locate
from pipeline.runs.status import Status
from pipeline.runs.workspace import Workspace
from tests.pipeline.tiny import TINY, TINY_GLYPHS, as_options

DAY: Final = 86_400.0
ROLLBACK_EVERY: Final = 45
SETTINGS: Final = {
    **TINY,
    **TINY_GLYPHS,
    "dataset.source": "synthetic",
    "train.steps": "12",
    "push.server_poll_seconds": "0",
}


class RecordedExecutor(base_stub_executor.BaseStubExecutor):
    """Copies what the real run made, properties and all."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Also makes each model another one, and notes on a blessing which it is for."""
        super().Do(input_dict, output_dict, exec_properties)
        for key, (artifact,) in output_dict.items():
            recorded = metadata_store_pb2.Artifact()
            folder = Path(self._test_data_dir, self._component_id, key)
            recorded.ParseFromString((folder / "artifact").read_bytes())
            for kind in ("properties", "custom_properties"):
                for name, value in getattr(recorded, kind).items():
                    getattr(artifact.mlmd_artifact, kind)[name].CopyFrom(value)
            if artifact.type_name == "ModelBlessing":
                (model,) = input_dict["model"]
                artifact.set_int_custom_property("current_model_id", model.id)
            if artifact.type_name == "Model":
                # The Pusher knows a model by its files.
                folder = Path(path_utils.serving_model_dir(artifact.uri))
                (folder / "assets.extra" / "made_for").write_text(artifact.uri)


def record(workspace: Workspace, recording: Path) -> None:
    """Lays out what a real run made as TFX's stub executors read it."""
    store = ml_metadata.MetadataStore(locate_metadata(workspace).connection())
    for artifact in store.get_artifacts():
        node, key, _ = Path(artifact.uri).relative_to(workspace.artifacts).parts
        folder = recording / node / key
        folder.mkdir(parents=True)
        (folder / "0").symlink_to(artifact.uri)
        (folder / "artifact").write_bytes(artifact.SerializeToString())


def replace_executors(ir: pipeline_pb2.Pipeline, recording: Path) -> None:
    """Has every component but the Pusher do what is recorded."""
    config = pipeline_pb2.IntermediateDeploymentConfig()
    ir.deployment_config.Unpack(config)
    for node, packed in config.executor_specs.items():
        if node != "Pusher":
            spec = executor_spec.ExecutorClassSpec(RecordedExecutor)
            flags = (
                f"{base_stub_executor.TEST_DATA_DIR_FLAG}={recording}",
                f"{base_stub_executor.COMPONENT_ID_FLAG}={node}",
            )
            spec.add_extra_flags(flags)
            packed.Pack(spec.encode())
    ir.deployment_config.Pack(config)


@contextmanager
def on_day(now: float, recording: Path) -> Iterator[None]:
    """The pipeline with recorded executors, at another time."""
    run_with_ir = LocalDagRunner.run_with_ir

    def run_recorded(runner: LocalDagRunner, ir: pipeline_pb2.Pipeline) -> None:
        replace_executors(ir, recording)
        run_with_ir(runner, ir)

    began = time.time()
    clock = SimpleNamespace(
        time=lambda: now + time.time() - began, monotonic=time.monotonic, sleep=time.sleep
    )
    with (
        patch.object(LocalDagRunner, "run_with_ir", run_recorded),
        patch.object(pipeline.runners.local, "time", clock),
    ):
        yield


class Year:
    """The output folder, day by day."""

    def __init__(self, root: Path, *, keep_versions: int, keep_days: float) -> None:
        self.workspace = Workspace(root / "output")
        self.template = Workspace(root / "template")
        self.recording = root / "recording"
        self.figures = root / "figures.jsonl"
        self._keep_versions, self._keep_days = keep_versions, keep_days
        self._metadata = locate_metadata(self.workspace)

    def make_recording(self) -> None:
        """The one real run."""
        if not self.recording.exists():
            assert oneshot(["run", "--output", str(self.template.root), *as_options(SETTINGS)]) == 0
            record(self.template, self.recording)

    def day(self, number: int, now: float) -> dict[str, Any]:
        """A retraining, a promotion, now and then a rollback, and a collection."""
        config = load_settings({"pairs.seed": str(number)})
        dataset = resolve(
            config.dataset,
            data=None,
            environ={},
            synthetic_dir=self.template.synthetic_data,
        )
        run_id = f"day-{number:03d}"
        began = time.perf_counter()
        store = ml_metadata.MetadataStore(self._metadata.connection())
        promotions = Promotions(
            self.workspace, store, settings=config.push, clock=lambda: now, sleep=lambda _: None
        )
        with on_day(now, self.recording), promotions.followed():
            done = pipeline.runners.local.run_pipeline(
                config=config,
                dataset=dataset,
                workspace=self.workspace,
                metadata=self._metadata,
                run=RunRecord(run_id=run_id, state=Status.RUNNING, started=now),
                check_lease=lambda: None,
            )
        ran = time.perf_counter()
        assert done.pushed_version is not None
        for name in ("report.html", "run.log"):
            content = (self.template.latest_run / name).read_bytes()
            (self.workspace.run_dir(run_id) / name).write_bytes(content)
        promotions.promote(done.pushed_version, "stable", why=f"day {number}")
        if number % ROLLBACK_EVERY == 0:
            promotions.rollback(why="a drill")
        before = time.perf_counter()
        report = collect_garbage(
            promotions,
            RunHistory(self._metadata.connection()).runs(),
            keep_versions=self._keep_versions,
            keep_days=self._keep_days,
            now=now,
        )
        return {
            "day": number,
            "run_seconds": ran - began,
            "gc_seconds": time.perf_counter() - before,
            "removed_mb": report.total_bytes / 1e6,
            "versions": len(report.kept_versions),
        }

    def measure(self) -> dict[str, Any]:
        """Sizes, and the wall time of `oneshot runs` in a process of its own: best of five."""
        root = self.workspace.root
        parts = {
            "artifacts": self.workspace.artifacts,
            "serving": root / "serving_model",
            "runs": self.workspace.runs,
            "metadata": self.workspace.metadata_db,
        }
        command = [sys.executable, "-m", "pipeline.cli.main", "runs", "--output", str(root)]
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
        return {f"{name}_mb": size(path) / 1e6 for name, path in parts.items()} | {
            "runs_seconds": min(seconds)
        }

    def check(self) -> None:
        """ML Metadata agrees with the disk.

        Raises:
          AssertionError: it does not.
        """
        store = ml_metadata.MetadataStore(self._metadata.connection())
        live = {
            Path(artifact.uri)
            for artifact in store.get_artifacts()
            if artifact.state == metadata_store_pb2.Artifact.LIVE
        }
        assert live == set(self.workspace.artifacts.glob("[!.]*/[!.]*/*"))

    def real_run(self) -> dict[str, Any]:
        """A run with nothing replaced: its `summary.json`."""
        assert oneshot(["run", "--output", str(self.workspace.root), *as_options(SETTINGS)]) == 0
        text = (self.workspace.latest_run / "summary.json").read_text(encoding="utf-8")
        summary: dict[str, Any] = json.loads(text)
        return summary


def locate_metadata(workspace: Workspace) -> Any:
    """ML Metadata of an output folder."""
    return locate(load_settings().metadata, workspace)


def load_settings(more: dict[str, str] | None = None) -> PipelineConfig:
    """The smallest pipeline that trains at all."""
    settings = SETTINGS | (more or {})
    return load_config(None, [f"{key}={value}" for key, value in settings.items()])


def size(path: Path) -> int:
    """Bytes of all files."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.year", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to work in")
    parser.add_argument("--days", type=int, default=365, help="last day (%(default)s)")
    parser.add_argument("--measure", type=int, nargs="*", default=[1, 30, 90, 180, 365])
    parser.add_argument("--keep-versions", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--keep-days", type=float, default=30.0, help="(%(default)s)")
    parser.add_argument("--minutes", type=float, help="stop after so long; continue by a new call")
    options = parser.parse_args(arguments)
    os.environ.pop("OMNIGLOT_DIR", None)
    began = time.monotonic()
    year = Year(options.output, keep_versions=options.keep_versions, keep_days=options.keep_days)
    year.make_recording()
    lines = year.figures.read_text(encoding="utf-8").splitlines() if year.figures.exists() else []
    first = json.loads(lines[0])["now"] if lines else time.time() - 400 * DAY
    for number in range(len(lines) + 1, options.days + 1):
        if options.minutes and time.monotonic() - began > 60 * options.minutes:
            return 0
        now = first + (number - 1) * DAY
        figures = {"now": now, **year.day(number, now)}
        if number in options.measure:
            figures |= year.measure()
        with year.figures.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()
    year.check()
    cached = [summary["cached"] for summary in (year.real_run(), year.real_run())]
    year.check()
    sys.stdout.write(f"ML Metadata and the disk agree. Cached nodes of two real runs: {cached}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
