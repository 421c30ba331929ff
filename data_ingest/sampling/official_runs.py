"""Lake et al.'s twenty one-shot runs (2015), as published in `all_runs.zip`.

A run is a folder: `run01/training/class01.png` to `class20.png`, `run01/test/item01.png` to
`item20.png`, and `run01/class_labels.txt`, each line of which names a test image and the training
image of its class.
"""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from data_ingest.errors import InputError
from data_ingest.sources.layout import ImageFile

_LABELS: Final = "class_labels.txt"
_MAX_LABELS_BYTES: Final = 2**20
_RUN: Final = re.compile(r"run\d+")


class OfficialTrial(NamedTuple):
    """A trial whose images are positions in `OfficialRuns.images`."""

    trial_id: str
    """`official/run03/item07`."""
    query: int
    support: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class OfficialRuns:
    """All runs of an archive or folder."""

    images: tuple[ImageFile, ...]
    """Group `run03`, class `run03/class08`, writer unknown (0)."""
    trials: tuple[OfficialTrial, ...]

    @property
    def ways(self) -> set[int]:
        return {len(trial.support) for trial in self.trials}


def read_official_runs(container: Path) -> OfficialRuns:
    """Reads the runs of a zip, or of a folder that holds `run01` or `all_runs/run01`.

    Raises:
      InputError: there are no runs, or one of them is not laid out as described above.
    """
    files = _text_and_names(container)
    labels = sorted(
        name
        for name in files
        if PurePosixPath(name).name == _LABELS and _RUN.fullmatch(PurePosixPath(name).parent.name)
    )
    if not labels:
        raise InputError(
            f"{container} holds no one-shot runs: expected run01/{_LABELS}, run01/training/ and "
            "run01/test/ as in Omniglot's all_runs.zip"
        )
    images: list[ImageFile] = []
    trials: list[OfficialTrial] = []
    for label_file in labels:
        _read_run(container, label_file, files, images, trials)
    return OfficialRuns(tuple(images), tuple(trials))


def _read_run(
    container: Path,
    label_file: str,
    files: dict[str, str],
    images: list[ImageFile],
    trials: list[OfficialTrial],
) -> None:
    root = PurePosixPath(label_file).parent
    run = root.name
    training = sorted(name for name in files if PurePosixPath(name).parent == root / "training")
    if len(training) < 2:
        raise InputError(
            f"{container}: {root}/training holds {len(training)} images, at least 2 are needed"
        )
    first = len(images)
    position = {name: first + number for number, name in enumerate(training)}
    support = tuple(position.values())
    for name in training:
        images.append(_image(container, name, run, PurePosixPath(name).stem))
    lines = [line.split() for line in files[label_file].splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{container}: {label_file} is empty")
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        where = f"{container}: {label_file} line {number}"
        if len(line) != 2:
            raise InputError(f"{where}: expected a test image and a training image, got {line}")
        test, answer = (str(root.parent / path) for path in line)
        if test not in files or PurePosixPath(test).parent != root / "test":
            raise InputError(f"{where}: there is no test image {line[0]}")
        if answer not in position:
            raise InputError(f"{where}: there is no training image {line[1]}")
        if test in seen:
            raise InputError(f"{where}: {line[0]} is listed twice")
        seen.add(test)
        trials.append(
            OfficialTrial(
                trial_id=f"official/{run}/{PurePosixPath(test).stem}",
                query=len(images),
                support=support,
                answer=position[answer] - first,
            )
        )
        images.append(_image(container, test, run, PurePosixPath(answer).stem))


def _image(container: Path, member: str, run: str, class_stem: str) -> ImageFile:
    return ImageFile(
        group=run,
        class_name=f"{run}/{class_stem}",
        writer=0,
        container=str(container),
        member=member,
    )


def _text_and_names(container: Path) -> dict[str, str]:
    """Names of the files, each with its text if it is a label file."""
    if container.is_dir():
        paths = {
            path.relative_to(container).as_posix(): path
            for path in sorted(container.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        return {
            name: path.read_text("utf-8", "replace")[:_MAX_LABELS_BYTES]
            if path.name == _LABELS
            else ""
            for name, path in paths.items()
        }
    try:
        with zipfile.ZipFile(container) as archive:
            found: dict[str, str] = {}
            for entry in archive.infolist():
                path = PurePosixPath(entry.filename)
                if entry.is_dir() or path.name.startswith(".") or "__MACOSX" in path.parts:
                    continue
                if ".." in path.parts or path.is_absolute():
                    raise InputError(f"{container}: unsafe file name {entry.filename!r}")
                found[str(path)] = ""
                if path.name == _LABELS:
                    with archive.open(entry) as stream:
                        found[str(path)] = stream.read(_MAX_LABELS_BYTES).decode("utf-8", "replace")
            return found
    except InputError:
        raise
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{container} cannot be read as a zip archive ({error})") from error
