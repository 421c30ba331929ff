"""Which trials a model is to be measured by: drawn from some images, or the published ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_ingest.errors import InputError
from data_ingest.few_shot import FewShotTrial, classes_left_out, few_shot_trials
from data_ingest.layout import ImageFile, ImageReader
from data_ingest.official import read_official_runs
from pipeline.trial_images import TrialImages, sound_images


@dataclass(frozen=True, eq=False)
class TrialSets:
    """Trials of several ways over the same images."""

    source: str
    """Folder or zip."""
    protocol: Literal["within", "official"]
    shots: int
    asked: int
    """Trials of each way that were asked for, or published."""
    seed: int | None
    """None where the trials are published."""
    images: TrialImages
    by_way: dict[int, list[FewShotTrial]]
    classes_left_out: list[str]
    """Those with too few images by different writers for so many shots."""


def within_trials(
    files: Sequence[ImageFile],
    reader: ImageReader,
    *,
    ways: Sequence[int],
    shots: int,
    trials: int,
    seed: int,
) -> TrialSets:
    """Trials within groups, drawn at random: see `few_shot_trials`.

    Raises:
      InputError: a number is out of range, no usable images, or no group of so many classes with
        so many images.
    """
    if not ways or min(ways) < 2 or shots < 1 or trials < 1 or seed < 0:
        raise InputError(
            "--way must be at least 2, --shots and --trials at least 1 and --seed at least 0"
        )
    images = sound_images(files, reader)
    return TrialSets(
        source=files[0].container,
        protocol="within",
        shots=shots,
        asked=trials,
        seed=seed,
        images=images,
        by_way={
            way: list(few_shot_trials(images.index, way=way, shots=shots, trials=trials, seed=seed))
            for way in ways
        },
        classes_left_out=classes_left_out(images.index, shots=shots),
    )


def official_trials(container: Path, reader: ImageReader) -> TrialSets:
    """The published one-shot trials of Omniglot (Lake et al. 2015), `all_runs.zip`.

    Raises:
      InputError: they are not laid out as they should be, or no trial has all its images.
    """
    runs = read_official_runs(container)
    images = sound_images(runs.images, reader, copies=True)
    by_way: dict[int, list[FewShotTrial]] = {}
    for trial in images.official(runs.trials):
        by_way.setdefault(len(trial.references), []).append(trial)
    if not by_way:
        raise InputError(f"{container}: each trial lacks an image that can be read")
    return TrialSets(
        source=str(container),
        protocol="official",
        shots=1,
        asked=len(runs.trials),
        seed=None,
        images=images,
        by_way=dict(sorted(by_way.items(), reverse=True)),
        classes_left_out=[],
    )
