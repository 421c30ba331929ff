"""Tiny image trees for tests: every image is a different PNG of a few dozen bytes."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data_ingest.sampling.draws import stable_hash
from data_ingest.sources.layout import ImageFile, ImageReader


def png(name: str, *, side: int = 12) -> bytes:
    """A 1-bit PNG that depends on `name` alone; another name gives another image."""
    noise = np.random.default_rng(stable_hash(0, name)).integers(0, 2, (side, side), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise * 255).convert("1").save(stream, "PNG")
    return stream.getvalue()


def read_image(image: ImageFile) -> bytes:
    with ImageReader() as reader:
        return reader.read(image)


def omniglot_tree(
    prefix: str, *, groups: int, classes: int, writers: int, root: str = ""
) -> dict[str, bytes]:
    """Files by name, `<root><prefix>0/character01/0001_01.png` and so on."""
    names = [
        f"{prefix}{group}/character{number:02d}/{number:04d}_{writer:02d}.png"
        for group in range(groups)
        for number in range(1, classes + 1)
        for writer in range(1, writers + 1)
    ]
    return {f"{root}{name}": png(name) for name in names}


def runs_tree(*, runs: int, way: int, root: str = "") -> dict[str, bytes]:
    """Official one-shot runs; item `i` of a run is of class `way + 1 - i`."""
    files: dict[str, bytes] = {}
    for run in (f"run{number:02d}" for number in range(1, runs + 1)):
        lines = []
        for item in range(1, way + 1):
            test, training = f"{run}/test/item{item:02d}.png", f"{run}/training/class{item:02d}.png"
            files[f"{root}{test}"] = png(test)
            files[f"{root}{training}"] = png(training)
            lines.append(f"{test} {run}/training/class{way + 1 - item:02d}.png\n")
        files[f"{root}{run}/class_labels.txt"] = "".join(lines).encode()
    return files


def write_zip(path: Path, files: Mapping[str, bytes], *, backwards: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files, reverse=backwards):
            archive.writestr(name, files[name])
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path
