"""Describes the cluster that a compiled pipeline is for, and refuses what cannot work there."""

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from data_ingest.errors import InputError
from data_ingest.paths import absolute
from data_ingest.sources.dataset import Dataset
from data_ingest.sources.kinds import Kind
from data_ingest.spans.store import SpanStore
from pipeline.config import PipelineConfig
from pipeline.settings import KubeflowSettings

NEWEST: Final = "newest"
"""Stands for the number of a span."""
_CRON_FIELDS: Final = ("minute", "hour", "day of the month", "month", "day of the week")
_CRON_FIELD: Final = re.compile(r"[0-9A-Za-z*,/-]+")


@dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim, mounted in every container."""

    claim: str
    mount_path: PurePosixPath


@dataclass(frozen=True)
class Cluster:
    """Where the compiled pipeline is to run."""

    image: str
    """Container image that holds this package; see `Dockerfile`."""
    output: str
    """Folder in the volume, or `gs://` URI, of `serving_model/` and `checkpoints/`."""
    vertex: bool = False
    """Vertex AI, and not open-source Kubeflow Pipelines."""
    pipeline_root: str | None = None
    """URI under which artifacts are kept; None takes the installation's own."""
    gpu: str | None = None
    """`nvidia-tesla-t4`, or a resource of Kubernetes such as `nvidia.com/gpu`."""
    gpus: int = 1
    volume: Volume | None = None
    spans_folder: str | None = None
    """Of the spans that `oneshot ingest` lands, as the containers see it: every run takes the
    newest window of them. None: the images are those given when the pipeline is compiled."""


def check_cluster(config: PipelineConfig, dataset: Dataset, cluster: Cluster) -> None:
    """Refuses what would fail only in the cluster, after minutes or hours.

    Raises:
      InputError: with what to give instead.
    """
    if cluster.gpus < 1:
        raise InputError(f"--gpus {cluster.gpus}: give 1 or more")
    if cluster.vertex:
        _check_vertex(dataset, cluster)
        _check_machines(config.kubeflow)
    else:
        _check_kubeflow(dataset, cluster)
    runner = config.beam.runner
    if runner == "local":
        return
    if not (cluster.pipeline_root or "").startswith("gs://"):
        raise InputError(
            f"--pipeline-root: with beam.runner={runner} give a gs:// URI, which Beam's workers "
            "can read and write; they do not see the folders that are mounted in the steps"
        )


def _check_vertex(dataset: Dataset, cluster: Cluster) -> None:
    if cluster.volume is not None:
        raise InputError(
            "--volume: Vertex AI has no PersistentVolumeClaims; it shows gs://BUCKET as /gcs/BUCKET"
        )
    for option, value in (("--pipeline-root", cluster.pipeline_root), ("--output", cluster.output)):
        if not (value or "").startswith("gs://"):
            raise InputError(f"{option}: Vertex AI needs a gs:// URI (got {value or 'none'})")
    if not dataset.base.is_relative_to("/gcs"):
        raise InputError(
            f"{dataset.base}: Vertex AI sees images only under /gcs/BUCKET, where it mounts Cloud "
            "Storage: upload them and add --map HERE=/gcs/BUCKET/…"
        )
    if cluster.gpu is not None and "/" in cluster.gpu:
        raise InputError(f"--gpu {cluster.gpu}: Vertex AI wants a model, as nvidia-tesla-t4")


def _check_machines(settings: KubeflowSettings) -> None:
    places = {"secrets": bool(settings.secrets)}
    for name, step in settings.resources.items():
        places[f"resources.{name}.node_selector"] = bool(step.node_selector)
        places[f"resources.{name}.tolerations"] = bool(step.tolerations)
    for place, is_set in places.items():
        if is_set:
            raise InputError(
                f"kubeflow.{place}: Vertex AI shows neither nodes nor Secrets of Kubernetes: leave "
                "it out; machines are chosen by cpu_limit, memory_limit and --gpu"
            )


def _check_kubeflow(dataset: Dataset, cluster: Cluster) -> None:
    root = cluster.pipeline_root
    if root is not None and not root.startswith(("gs://", "s3://", "minio://")):
        raise InputError(f"--pipeline-root {root}: Kubeflow needs a gs://, s3:// or minio:// URI")
    places = {"--output": cluster.output, "the images": str(dataset.base)}
    if cluster.output.startswith("gs://"):
        del places["--output"]
    for name, place in places.items():
        mounted = cluster.volume and PurePosixPath(place).is_relative_to(cluster.volume.mount_path)
        if mounted:
            continue
        raise InputError(
            f"{place} ({name}): no container keeps this. Name a PersistentVolumeClaim that holds "
            "it, --volume CLAIM:/mount/path, and give paths under the mount path"
            + (" (or a gs:// URI)" if name == "--output" else "; --map HERE=THERE renames them")
        )


@dataclass(frozen=True)
class PathMap:
    """A folder here, and what the containers see it as."""

    here: Path
    there: Path

    @classmethod
    def parse(cls, text: str | None) -> "PathMap":
        """Reads `HERE=THERE`; None: paths are the same there.

        Raises:
          InputError: the text is not of that form, or THERE is not absolute.
        """
        if text is None:
            return cls(Path("/"), Path("/"))
        here, _, there = text.partition("=")
        if not here or not there.startswith("/"):
            raise InputError(
                f"--map {text}: write it as HERE=THERE, a folder here and the absolute path under "
                "which the containers see it"
            )
        return cls(absolute(Path(here)), Path(there))

    def to_cluster(self, dataset: Dataset) -> Dataset:
        """The same images as the containers see them.

        Raises:
          InputError: they are not in the folder here.
        """
        if dataset.base == self.here.parent and [*dataset.inputs.values()] == [self.here.name]:
            # The folder here is all there is: images of one's own.
            inputs = dict.fromkeys(dataset.inputs, self.there.name)
            return replace(dataset, base=self.there.parent, inputs=inputs)
        if not dataset.base.is_relative_to(self.here):
            raise InputError(
                f"{dataset.base} is not in {self.here}: --map has to name a folder that the "
                "images are in"
            )
        return replace(dataset, base=self.there / dataset.base.relative_to(self.here))

    def from_cluster(self, path: Path) -> Path:
        """Where a folder of the cluster's is here.

        Raises:
          InputError: it is not in the folder there.
        """
        if not path.is_relative_to(self.there):
            raise InputError(f"--map: {path} is not in {self.there}")
        return self.here / path.relative_to(self.there)


def window_up_to(
    folder: Path, length: int, last: str = NEWEST, kind: Literal["auto", Kind] = "auto"
) -> Dataset:
    """The images of the `length` spans in a folder up to one; 0: of all up to it.

    Args:
      folder: of the spans.
      length: how many.
      last: `newest`, or the number of the span.
      kind: as of `SpanStore.window`.

    Raises:
      InputError: there is no such span, or none at all.
    """
    store = SpanStore(folder)
    if last != NEWEST:
        if not re.fullmatch(r"[0-9]{1,18}", last):
            raise InputError(f"span: give {NEWEST} or a number (got {last!r})")
        return store.window(int(last), length, kind)
    numbers = [span.number for span in store.spans() if span.excluded is None]
    if not numbers:
        raise InputError(f"{folder}: no span to train on; `oneshot ingest` lands one")
    return store.window(max(numbers), length, kind)


def checked_cron(cron: str) -> str:
    """The five fields of a cron line, one space apart.

    Raises:
      InputError: there are more or fewer, or one holds characters that have no meaning there.
    """
    fields = cron.split()
    if len(fields) != len(_CRON_FIELDS):
        raise InputError(
            f"--schedule {cron!r}: give five fields ({', '.join(_CRON_FIELDS)}), e.g. '0 3 * * *'"
        )
    for name, field in zip(_CRON_FIELDS, fields, strict=True):
        if not _CRON_FIELD.fullmatch(field):
            raise InputError(f"--schedule {cron!r}: {field!r} is no {name}")
    return " ".join(fields)
