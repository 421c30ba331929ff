"""A cluster's volume, and the command that compiles for it."""

from pathlib import Path
from typing import Any

import yaml

from data_ingest.sources.glyphs import write_glyphs
from pipeline.cli.main import main
from tests.pipeline.tiny import TINY, as_options


class Cluster:
    """A volume with images, and the command that compiles for it."""

    def __init__(self, folder: Path) -> None:
        self.volume = folder / "volume"
        self.images = self.volume / "images.zip"
        self.output = self.volume / "output"
        self.volume.mkdir()
        write_glyphs(self.images, alphabets=8, characters=6, seed=3, writers=4)

    def compile(self, out: Path, *options: str, **settings: str) -> int:
        sets = as_options(TINY | {key.replace("__", "."): value for key, value in settings.items()})
        volume = f"--volume=oneshot:{self.volume}"
        where = [volume, f"--output={self.output}", f"--data={self.images}"]
        return main(["compile", f"--out={out}", *where, *sets, *options])

    def for_vertex(self, out: Path, *options: str) -> int:
        sets = as_options(TINY)
        data = [f"--data={self.images}", f"--map={self.volume}=/gcs/bucket/oneshot"]
        where = ["--output=gs://bucket/oneshot", "--pipeline-root=gs://bucket/runs", *data]
        return main(["compile", "--vertex", f"--out={out}", *where, *sets, *options])


def documents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    spec, platform = yaml.safe_load_all(path.read_text())
    return spec, platform
