"""`oneshot compile`: the pipeline as a file for Kubeflow Pipelines or Vertex AI."""

import argparse
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any, Final

from data_ingest.durable import write_atomically
from data_ingest.errors import InputError
from data_ingest.sources.dataset import Dataset
from data_ingest.sources.resolve import DATA_VARIABLE, resolve
from pipeline.cli.shared import CONFIGURED, DATA, Context, add_command, named_path
from pipeline.config import PipelineConfig
from pipeline.runners.cluster import (
    Cluster,
    PathMap,
    Volume,
    check_cluster,
    checked_cron,
    window_up_to,
)

_CLAIM: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
DEFAULT_IMAGE: Final = "siamese-oneshot:latest"


def add_parsers(commands: Any) -> None:
    """Adds the command to those of `oneshot`."""
    parser = add_command(
        commands,
        "compile",
        _compile,
        CONFIGURED,
        DATA,
        text="write the pipeline for Kubeflow Pipelines or Vertex AI",
    )
    parser.add_argument(
        "--runner",
        choices=("kubeflow",),
        default="kubeflow",
        help="what runs it (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="FILE", help="the file to write"
    )
    parser.add_argument(
        "--format",
        choices=("yaml", "json"),
        help="yaml: pipeline spec, for Kubeflow or as a template of Vertex AI; json: pipeline job, "
        "for Vertex AI's API (by the name of FILE, otherwise yaml, with --vertex json)",
    )
    parser.add_argument(
        "--image",
        type=_name,
        default=DEFAULT_IMAGE,
        help="container image of all steps (default: %(default)s)",
    )
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
    parser.add_argument(
        "--gpu", type=_name, metavar="TYPE", help="GPU of the Trainer, e.g. nvidia-tesla-t4"
    )
    parser.add_argument("--gpus", type=int, help="how many GPUs (default: 1)")
    parser.add_argument(
        "--schedule",
        metavar="CRON",
        help="also write FILE's recurring run, e.g. '0 3 * * *', beside it as *.schedule.json",
    )
    parser.add_argument(
        "--project", type=_name, help="Google Cloud project of a schedule of Vertex AI"
    )
    parser.add_argument("--location", type=_name, help="region of a schedule of Vertex AI")


def _name(text: str) -> str:
    """What Kubernetes, registries and object stores take for a name, or several in a path."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.:/@-]*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r}: a name has letters, digits and . : / @ _ -")
    return text


def _compile(context: Context) -> None:
    """Writes the pipeline for Kubeflow Pipelines or Vertex AI.

    Of the images the names are read, to know which one-shot trials they can make, and a few are
    looked at.
    """
    options, config = context.options, context.config
    file_format = _format(options)
    path_map = PathMap.parse(options.map)
    cluster = _cluster(options)
    cron = None if options.schedule is None else checked_cron(options.schedule)
    if cron and options.vertex and not (options.project and options.location):
        raise InputError("--schedule: with --vertex also give --project and --location")
    with context.progress():
        dataset = _dataset(options, config, path_map)
        there = path_map.to_cluster(dataset)
        check_cluster(config, there, cluster)
    with context.quiet_libraries():
        from components.evaluator.evidence import evidence, tell_of_evidence
        from data_ingest.records.read import expected_protocols
        from pipeline.runners.kubeflow import compile_pipeline, recurring_run, vertex_schedule

        protocols = expected_protocols(
            dataset.containers(), config.pairs, writer_pattern=config.dataset.writer_pattern
        )
        tell_of_evidence(evidence(config.evaluate, protocols), protocols)
        compiled = compile_pipeline(
            config=config, dataset=there, protocols=protocols, cluster=cluster
        )
        texts = {options.out: compiled.yaml() if file_format == "yaml" else compiled.json()}
    if cron:
        name, project, location = config.pipeline_name, options.project, options.location
        schedule = (
            vertex_schedule(compiled, cron, name=name, project=project, location=location)
            if options.vertex
            else recurring_run(compiled, cron, name=name)
        )
        beside = options.out.with_name(f"{options.out.stem}.schedule.json")
        texts[beside] = json.dumps(schedule, indent=2, sort_keys=True) + "\n"
    for path, text in texts.items():
        write_atomically(path, text)
    paths = [str(path) for path in texts]
    context.show(dict(zip(("pipeline", "schedule"), paths, strict=False)), *paths)


def _format(options: argparse.Namespace) -> str:
    named = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}.get(options.out.suffix.lower())
    file_format = options.format or named or ("json" if options.vertex else "yaml")
    if file_format == "json" and not options.vertex:
        raise InputError(
            f"--out {options.out}: open-source Kubeflow takes YAML; JSON is for --vertex"
        )
    # Kubeflow's and Vertex AI's clients go by the name.
    if named != file_format:
        raise InputError(f"--out {options.out}: a file of --format {file_format} is named so")
    return str(file_format)


def _dataset(options: argparse.Namespace, config: PipelineConfig, path_map: PathMap) -> Dataset:
    if options.spans:
        if options.data is not None:
            raise InputError("--data and --spans contradict: leave one of them out")
        folder = path_map.from_cluster(Path(_spans_folder(options)))
        return window_up_to(folder, config.retrain.window, kind=config.dataset.kind)
    if not (options.data or config.dataset.data or os.environ.get(DATA_VARIABLE)):
        raise InputError(
            "--data: name the images that the cluster trains on (or --spans); what a run here "
            "downloads or generates the cluster does not see"
        )
    return resolve(
        config.dataset,
        data=options.data,
        environ=os.environ,
        synthetic_dir=Path(os.devnull),
    )


def _spans_folder(options: argparse.Namespace) -> str:
    output = options.output.rstrip("/")
    if output.startswith("gs://"):
        output = f"/gcs/{output.removeprefix('gs://')}"
    return f"{output}/spans"


def _cluster(options: argparse.Namespace) -> Cluster:
    if options.gpus is not None and options.gpu is None:
        raise InputError("--gpus: say which with --gpu, e.g. --gpu nvidia-tesla-t4")
    return Cluster(
        image=options.image,
        output=options.output,
        vertex=options.vertex,
        pipeline_root=options.pipeline_root,
        gpu=options.gpu,
        gpus=1 if options.gpus is None else options.gpus,
        volume=_volume(options.volume),
        spans_folder=_spans_folder(options) if options.spans else None,
    )


def _volume(text: str | None) -> Volume | None:
    if text is None:
        return None
    claim, _, path = text.partition(":")
    if not _CLAIM.fullmatch(claim) or not path.startswith("/"):
        raise InputError(
            f"--volume {text}: write it as CLAIM:/mount/path; a claim's name has small letters, "
            "digits, - and ."
        )
    return Volume(claim, PurePosixPath(path))
