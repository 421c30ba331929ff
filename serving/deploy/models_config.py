"""Writes `models.config`: which versions TF Serving loads, and which of them have labels."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

STABLE: Final = "stable"
CANARY: Final = "canary"
DEFAULT_FILE: Final = Path(__file__).with_name("models.config")


def models_config(
    name: str, *, base_path: str, versions: Sequence[int], labels: Mapping[str, int]
) -> str:
    """The configuration of one model, in text format.

    The labelled versions are loaded, and the newest, so that it is ready when a label is to move
    to it: a label may only be moved to a version that is loaded already.

    Args:
      name: of the model on the server.
      base_path: folder of the versions as the server sees it, or a URL such as `s3://...`.
      versions: those that are there.
      labels: versions by label.

    Raises:
      ValueError: there are no versions, or a label is for one that is not there.
    """
    if not versions:
        raise ValueError("there is no version yet: push a model first")
    for label, version in labels.items():
        if version not in versions:
            raise ValueError(f"{label}: there is no version {version}, only {sorted(versions)}")
    config = model_server_config_pb2.ModelServerConfig()
    model = config.model_config_list.config.add(
        name=name, base_path=base_path, model_platform="tensorflow"
    )
    loaded = sorted({*labels.values(), max(versions)})
    model.model_version_policy.specific.versions.extend(loaded)
    for label, version in labels.items():
        model.version_labels[label] = version
    text: str = text_format.MessageToString(config)
    return text


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
    versions = [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()]
    newest = max(versions, default=0)
    try:
        text = models_config(
            folder.resolve().name,
            base_path=options.base_path or f"/models/{folder.resolve().name}",
            versions=versions,
            labels={
                CANARY: newest if options.canary is None else options.canary,
                STABLE: newest if options.stable is None else options.stable,
            },
        )
    except ValueError as error:
        parser.error(str(error))
    # Whole or not at all: the server may read it at any moment.
    unfinished = options.file.with_name(f".{options.file.name}.new")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
