"""Writes `models.config`: which versions TF Serving loads, and which of them have labels."""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from data_ingest.durable import write_atomically
from serving.saved_model.versions import versions

STABLE: Final = "stable"
CANARY: Final = "canary"
LABELS: Final = (STABLE, CANARY)
DEFAULT_FILE: Final = Path(__file__).with_name("models.config")


@dataclass(frozen=True)
class ModelEntry:
    """What a `models.config` says about one model.

    Attributes:
      labels: versions by label.
      loaded: the versions it lists; empty where its policy lists none.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    loaded: frozenset[int] = frozenset()


def models_config(
    name: str,
    *,
    base_path: str,
    versions: Sequence[int],
    labels: Mapping[str, int],
    loaded: Collection[int] = (),
    before: str = "",
) -> str:
    """The configuration of one model, in text format.

    The labelled versions are loaded, and the newest, so that it is ready when a label is to move
    to it: a label may only be moved to a version that is loaded already.

    Args:
      name: of the model on the server.
      base_path: folder of the versions as the server sees it, or a URL such as `s3://...`.
      versions: those that are there.
      labels: versions by label.
      loaded: versions to load besides.
      before: the configuration so far, in text format, whose other models stay.

    Raises:
      ValueError: there are no versions, one to load is not there, or `before` cannot be read.
    """
    if not versions:
        raise ValueError("there is no version yet: push a model first")
    for label, version in labels.items():
        if version not in versions:
            raise ValueError(f"{label}: there is no version {version}, only {sorted(versions)}")
    if missing := set(loaded) - set(versions):
        raise ValueError(f"there are no versions {sorted(missing)}, only {sorted(versions)}")
    config = _parse(before)
    models = config.model_config_list.config
    model = next((model for model in models if model.name == name), None) or models.add()
    model.Clear()
    model.name, model.base_path, model.model_platform = name, base_path, "tensorflow"
    wanted = {*labels.values(), *loaded, max(versions)}
    model.model_version_policy.specific.versions.extend(sorted(wanted))
    for label, version in labels.items():
        model.version_labels[label] = version
    text: str = text_format.MessageToString(config)
    return text


def read_entry(text: str, name: str) -> ModelEntry | None:
    """What a configuration in text format says about a model; None: nothing.

    Raises:
      ValueError: it cannot be read.
    """
    for model in _parse(text).model_config_list.config:
        if model.name == name:
            listed = frozenset(model.model_version_policy.specific.versions)
            return ModelEntry(dict(model.version_labels), listed)
    return None


def _parse(text: str) -> model_server_config_pb2.ModelServerConfig:
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise ValueError(f"not a ModelServerConfig in text format: {error}") from error
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 done, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.deploy.models_config",
        description="Gives labels to versions and writes TF Serving's list of models. Clients that "
        "ask for a label get its version; the others get the newest that is loaded.",
    )
    parser.add_argument("folder", type=Path, help="the versions, such as output/serving_model/NAME")
    parser.add_argument("--stable", type=int, help="version with this label (the newest)")
    parser.add_argument("--canary", type=int, help="version with this label (the newest)")
    parser.add_argument("--base-path", help="the folder as the server sees it (/models/NAME)")
    parser.add_argument("--file", type=Path, default=DEFAULT_FILE, help="(%(default)s)")
    options = parser.parse_args(arguments)
    folder = options.folder
    if not folder.is_dir():
        parser.error(f"there is no folder {folder}")
    there = versions(folder)
    newest = max(there, default=0)
    try:
        text = models_config(
            folder.resolve().name,
            base_path=options.base_path or f"/models/{folder.resolve().name}",
            versions=there,
            labels={
                CANARY: newest if options.canary is None else options.canary,
                STABLE: newest if options.stable is None else options.stable,
            },
        )
    except ValueError as error:
        parser.error(str(error))
    write_atomically(options.file, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
