"""Reads Lake et al.'s twenty one-shot runs (2015), as published in `all_runs.zip`.

A run is a folder: `run01/training/class01.png` to `class20.png`, `run01/test/item01.png` to
`item20.png`, and `run01/class_labels.txt`, each line of which names a test image and the training
image of its class.
"""

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from data_ingest.errors import InputError
from data_ingest.sampling.trials import Trial
from data_ingest.sources.containers import list_members, refuse_unsafe_name
from data_ingest.sources.layout import ImageFile, ImageReader, UnreadableImageError

_LABELS: Final = "class_labels.txt"
_RUN: Final = re.compile(r"run\d+")


class OfficialRuns(NamedTuple):
    """All runs of an archive or folder."""

    images: list[ImageFile]
    """Group `run03`, class `run03/class08`, writer unknown (0)."""
    trials: list[Trial]
    """Their images are positions in `images`."""


def read_official_runs(container: Path) -> OfficialRuns:
    """Reads the runs of a zip, or of a folder that holds `run01` or `all_runs/run01`.

    Raises:
      InputError: there are no runs, or one of them is not laid out as described above.
    """
    names = list_members(container)
    for name in names:
        refuse_unsafe_name(container, name)
    labels = [
        name
        for name in names
        if PurePosixPath(name).name == _LABELS and _RUN.fullmatch(PurePosixPath(name).parent.name)
    ]
    if not labels:
        raise InputError(
            f"{container} holds no one-shot runs: expected run01/{_LABELS}, run01/training/ and "
            "run01/test/ as in Omniglot's all_runs.zip"
        )
    runs = OfficialRuns([], [])
    with ImageReader() as reader:
        for label_file in labels:
            try:
                text = reader.read(_file(container, label_file, "", "")).decode("utf-8", "replace")
            except UnreadableImageError as error:
                raise InputError(f"{error} cannot be read") from error
            _read_run(container, label_file, text, set(names), runs)
    return runs


def _read_run(
    container: Path, label_file: str, text: str, names: Collection[str], runs: OfficialRuns
) -> None:
    images, trials = runs
    root = PurePosixPath(label_file).parent
    run = root.name
    training = sorted(name for name in names if PurePosixPath(name).parent == root / "training")
    if len(training) < 2:
        raise InputError(
            f"{container}: {root}/training holds {len(training)} images, at least 2 are needed"
        )
    position = {name: number for number, name in enumerate(training)}
    support = tuple((len(images) + number,) for number in position.values())
    images += [_file(container, name, run, PurePosixPath(name).stem) for name in training]
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{container}: {label_file} is empty")
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        where = f"{container}: {label_file} line {number}"
        if len(line) != 2:
            raise InputError(f"{where}: expected a test image and a training image, got {line}")
        test, answer = (str(root.parent / path) for path in line)
        if test not in names or PurePosixPath(test).parent != root / "test":
            raise InputError(f"{where}: there is no test image {line[0]}")
        if answer not in position:
            raise InputError(f"{where}: there is no training image {line[1]}")
        if test in seen:
            raise InputError(f"{where}: {line[0]} is listed twice")
        seen.add(test)
        trial_id = f"official/{run}/{PurePosixPath(test).stem}"
        trials.append(Trial(trial_id, len(images), support, position[answer]))
        images.append(_file(container, test, run, PurePosixPath(answer).stem))


def _file(container: Path, member: str, run: str, class_stem: str) -> ImageFile:
    return ImageFile(run, f"{run}/{class_stem}", 0, str(container), member)
