"""A local server with a tiny model, and pushing of further versions to it."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from components.trainer.model import HEAD, build_model
from serving.saved_model.contract import Preprocessing
from serving.saved_model.export import export_model
from serving.server.models import ModelSetup
from serving.server.server import LocalServer, ServerOptions
from serving.server.versions import HostOptions, Policy
from tests.pair_records import drawing, png, tiny_recipe
from tests.serving.contract.api import Target

NAME = "siamese"
VERSION = 3


@dataclass(frozen=True)
class Served:
    """A server that is running.

    Attributes:
      models: folder of the version folders.
      exported: a version to copy, which is not served.
    """

    server: LocalServer
    models: Path
    exported: Path

    @property
    def target(self) -> Target:
        """Where it answers."""
        return Target(self.server.grpc_target, self.server.rest_url, NAME, local=True)

    def push(self, version: int) -> None:
        """Adds a version, whole or not at all, as Pusher does."""
        unfinished = self.models / f".{version}"
        shutil.copytree(self.exported, unfinished)
        unfinished.rename(self.models / str(version))


def export(folder: Path, *, seed: int = 1) -> Path:
    """Exports an untrained model of 8-dimensional embeddings of 16x16 drawings."""
    keras.utils.set_random_seed(seed)
    model = build_model(tiny_recipe())
    weights = np.random.default_rng(seed).uniform(0, 9, 8).astype("float32")
    model.get_layer(HEAD).w.assign(weights)
    export_model(
        model,
        folder,
        preprocessing=Preprocessing(16),
        card={},
        warmup_images=[png(drawing(1, 1)), png(drawing(2, 1))],
    )
    return folder


@contextlib.contextmanager
def serving(
    folder: Path,
    *,
    exported: Path | None = None,
    labels: Mapping[str, int] | None = None,
    versions: int = 1,
) -> Iterator[Served]:
    """Serves version `VERSION` on free ports until the end of the block.

    Args:
      folder: for the model.
      exported: where a version lies already; else one is exported.
      labels: version by label.
      versions: how many of the newest are served.
    """
    source = exported or export(folder / "exported")
    models = folder / "models"
    models.mkdir()
    options = HostOptions(policy=Policy(latest=versions), poll_seconds=0.05, labels=labels or {})
    shutil.copytree(source, models / str(VERSION))
    setups = {NAME: ModelSetup(models, options)}
    with LocalServer(ServerOptions(setups, grpc_port=0, rest_port=0)) as server:
        assert server.wait_available(120)
        yield Served(server, models, source)
