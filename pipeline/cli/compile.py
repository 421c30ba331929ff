"""`oneshot compile`: the pipeline as a file for Kubeflow Pipelines or Vertex AI."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from data_ingest.durable import write_text_atomically
from data_ingest.errors import InputError
from data_ingest.sources.resolve import DATA_VARIABLE, Dataset, resolve
from pipeline.config import PipelineConfig, load_config
from pipeline.runners.cluster import (
    Cluster,
    PathMap,
    Spans,
    Volume,
    check_cluster,
    newest_window,
    require_pipeline_spec,
)
from pipeline.runners.kubeflow import checked_cron, recurring_run, vertex_schedule
from pipeline.runs.logs import console_logging, run_logging

if TYPE_CHECKING:
    from pipeline.runners.kubeflow import CompiledPipeline

DEFAULT_IMAGE: Final = "siamese-oneshot:latest"


def add_parser(commands: Any, parents: Sequence[argparse.ArgumentParser]) -> None:
    """Adds `compile` to the subcommands of `oneshot`.

    Args:
      commands: what `add_subparsers` returned.
      parents: parsers of `--json`, `--verbose`, `--config`, `--set` and `--data`.
    """
    parser = commands.add_parser(
        "compile",
        parents=list(parents),
        help="write the pipeline for Kubeflow Pipelines or Vertex AI",
        description="Writes the pipeline for Kubeflow Pipelines or Vertex AI. Of the images only "
        "the names are read, to know which one-shot trials they can make.",
    )
    parser.add_argument("--runner", choices=("kubeflow",), default="kubeflow", help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="what is written")
    parser.add_argument(
        "--format",
        choices=("yaml", "json"),
        help="yaml: pipeline spec, for Kubeflow or as a template of Vertex AI; json: pipeline job, "
        "for Vertex AI's API (by the name of FILE, otherwise yaml, with --vertex json)",
    )
    parser.add_argument("--image", default=DEFAULT_IMAGE, help="container image (%(default)s)")
    parser.add_argument("--vertex", action="store_true", help="for Vertex AI")
    parser.add_argument(
        "--output",
        required=True,
        metavar="PATH_OR_URI",
        help="where the cluster keeps serving_model/ and checkpoints/: a folder in the volume, or "
        "gs://…",
    )
    parser.add_argument("--pipeline-root", metavar="URI", help="where the cluster keeps artifacts")
    parser.add_argument(
        "--volume",
        metavar="CLAIM:PATH",
        help="PersistentVolumeClaim that every step sees at PATH (Kubeflow)",
    )
    parser.add_argument(
        "--map",
        metavar="HERE=THERE",
        help="folder here, and what the containers see it as; for --data and --spans",
    )
    parser.add_argument(
        "--spans",
        action="store_true",
        help="every run trains on the retrain.window newest spans in OUTPUT/spans",
    )
    parser.add_argument("--gpu", metavar="TYPE", help="GPU of the Trainer, e.g. nvidia-tesla-t4")
    parser.add_argument("--gpus", type=int, help="number of GPUs (1)")
    parser.add_argument(
        "--schedule",
        metavar="CRON",
        help="also write FILE's recurring run, e.g. '0 3 * * *', beside it as *.schedule.json",
    )
    parser.add_argument("--project", help="Google Cloud project of a schedule of Vertex AI")
    parser.add_argument("--location", help="region of a schedule of Vertex AI")
    parser.set_defaults(command=_compile)


def _compile(arguments: argparse.Namespace) -> int:
    file_format = _format(arguments)
    config = load_config(arguments.config, arguments.overrides)
    require_pipeline_spec()
    path_map = PathMap.parse(arguments.map)
    cluster = _cluster(arguments, config)
    if arguments.schedule is not None:
        checked_cron(arguments.schedule)
        if arguments.vertex and not (arguments.project and arguments.location):
            raise InputError("--schedule: with --vertex also give --project and --location")
    with ExitStack() as stack:
        stack.enter_context(console_logging(sys.stderr))
        dataset = _dataset(arguments, config, path_map)
        there = path_map.to_cluster(dataset)
        check_cluster(config, there, cluster)
        stack.enter_context(run_logging(Path(os.devnull), verbose=arguments.verbose))
        from data_ingest.records.plan import expected_protocols
        from pipeline.runners.kubeflow import compile_pipeline

        compiled = compile_pipeline(
            config=config,
            dataset=there,
            protocols=expected_protocols(dataset.containers(), config.pairs),
            cluster=cluster,
        )
        texts = {arguments.out: compiled.yaml() if file_format == "yaml" else compiled.json()}
        schedule = _schedule(arguments, config, compiled)
        if schedule is not None:
            beside = arguments.out.with_name(f"{arguments.out.stem}.schedule.json")
            texts[beside] = json.dumps(schedule, indent=2, sort_keys=True) + "\n"
    for path, text in texts.items():
        write_text_atomically(path, text)
    if arguments.json:
        names = ("pipeline", "schedule")
        written = dict(zip(names, map(str, texts), strict=False))
        sys.stdout.write(json.dumps(written) + "\n")
    else:
        sys.stdout.write("".join(f"{path}\n" for path in texts))
    return 0


def _format(arguments: argparse.Namespace) -> str:
    named = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}.get(arguments.out.suffix.lower())
    file_format = arguments.format or named or ("json" if arguments.vertex else "yaml")
    if file_format == "json" and not arguments.vertex:
        raise InputError(
            f"--out {arguments.out}: open-source Kubeflow takes YAML; JSON is for --vertex"
        )
    # Kubeflow's and Vertex AI's clients go by the name.
    if named != file_format:
        raise InputError(f"--out {arguments.out}: a file of --format {file_format} is named so")
    return str(file_format)


def _dataset(arguments: argparse.Namespace, config: PipelineConfig, path_map: PathMap) -> Dataset:
    if arguments.spans:
        if arguments.data is not None:
            raise InputError("--data and --spans contradict: leave one of them out")
        folder = path_map.from_cluster(Path(_spans_folder(arguments)))
        return newest_window(folder, config.retrain.window)
    if not (arguments.data or config.dataset.data or os.environ.get(DATA_VARIABLE)):
        raise InputError(
            "--data: name the images that the cluster trains on (or --spans); what a run here "
            "downloads or generates the cluster does not see"
        )
    return resolve(
        config.dataset,
        data=arguments.data,
        environ=os.environ,
        synthetic_dir=Path(os.devnull),
    )


def _spans_folder(arguments: argparse.Namespace) -> str:
    output = arguments.output.rstrip("/")
    if output.startswith("gs://"):
        output = f"/gcs/{output.removeprefix('gs://')}"
    return f"{output}/spans"


def _cluster(arguments: argparse.Namespace, config: PipelineConfig) -> Cluster:
    if arguments.gpus is not None and arguments.gpu is None:
        raise InputError("--gpus: say which with --gpu, e.g. --gpu nvidia-tesla-t4")
    return Cluster(
        image=arguments.image,
        output=arguments.output,
        vertex=arguments.vertex,
        pipeline_root=arguments.pipeline_root,
        gpu=arguments.gpu,
        gpus=1 if arguments.gpus is None else arguments.gpus,
        volume=_volume(arguments.volume),
        spans=Spans(_spans_folder(arguments), config.retrain.window) if arguments.spans else None,
    )


def _volume(text: str | None) -> Volume | None:
    if text is None:
        return None
    claim, _, path = text.partition(":")
    if not claim or not path.startswith("/"):
        raise InputError(f"--volume {text}: write it as CLAIM:/mount/path")
    return Volume(claim, PurePosixPath(path))


def _schedule(
    arguments: argparse.Namespace, config: PipelineConfig, compiled: "CompiledPipeline"
) -> dict[str, Any] | None:
    if arguments.schedule is None:
        return None
    name = config.pipeline_name
    if not arguments.vertex:
        return recurring_run(compiled, arguments.schedule, name=name)
    return vertex_schedule(
        compiled,
        arguments.schedule,
        name=name,
        project=arguments.project,
        location=arguments.location,
    )
