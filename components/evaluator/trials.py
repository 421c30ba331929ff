"""Collects the trials that a model is measured by: drawn, published, or of an Examples artifact."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from data_ingest.errors import InputError, shown
from data_ingest.progress import counted
from data_ingest.records.catalog import Found, count_reasons, locate, told_reasons
from data_ingest.records.features import read_pairs
from data_ingest.sampling.index import ImageIndex
from data_ingest.sampling.official_runs import read_official_runs
from data_ingest.sampling.protocols import (
    ONE_SHOT_SPLIT,
    PROTOCOL_BETWEEN,
    PROTOCOL_OFFICIAL,
    PROTOCOL_WITHIN,
)
from data_ingest.sampling.trials import (
    Trial,
    classes_left_out,
    draw_trials,
    largest_way,
    sound_trials,
)
from data_ingest.sources.images import ImageRejected
from data_ingest.sources.layout import ImageFile, ImageReader

_NAMED_REJECTED: Final = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrialImages:
    """Sound images by row of an index, without their bytes: a hundred thousand fit in memory."""

    index: ImageIndex
    files: tuple[ImageFile, ...]
    """By row of the index."""
    listing: tuple[int, ...]
    """Position of each row's file among those that were looked at."""
    rejected: int
    reader: ImageReader

    def encoded(self, row: int) -> bytes:
        """The bytes of an image, in their stored form.

        Raises:
          InputError: it is no longer there, or no longer what it was.
        """
        file = self.files[row]
        try:
            return self.reader.image(file)
        except ImageRejected as error:
            raise InputError(
                f"{shown(file.path)} has changed since it was looked at ({error.reason}): wait "
                "until the images are complete, and run again"
            ) from error


def sound_images(
    files: Sequence[ImageFile], reader: ImageReader, *, copies: bool = False
) -> TrialImages:
    """Reads every image once and keeps those that can be used, but not their bytes.

    Args:
      files: of one container or several.
      reader: stays open as long as the result is used.
      copies: whether a class keeps all copies of an image, as published trials must. Else it keeps
        one: a query that is a copy of its candidate would be no question.

    Raises:
      InputError: none of them can be used.
    """
    found: dict[object, Found] = {}
    rejected: list[tuple[ImageFile, str]] = []
    listed = counted(files, "Reading images", len(files))
    for position, file, data in reader.sound(listed, rejected):
        one = Found.of(file, data, position)
        found.setdefault(position if copies else (file.class_name, one.digest), one)
    reasons = told_reasons(count_reasons((bad.member, reason) for bad, reason in rejected))
    if not found:
        raise InputError(
            f"{files[0].container}: none of its {len(files)} images can be used: {reasons}"
        )
    if rejected:
        names = ", ".join(shown(bad.member) for bad, _ in rejected[:_NAMED_REJECTED])
        _log.warning("Images left out: %s, such as %s", reasons, names)
    located = locate(list(found.values()))
    return TrialImages(
        index=located.index,
        files=tuple(files[position] for position in located.listing),
        listing=tuple(located.listing.tolist()),
        rejected=len(rejected),
        reader=reader,
    )


@dataclass(frozen=True, eq=False)
class TrialSets:
    """Trials of several ways over the same images."""

    source: str
    """Folder or zip."""
    protocol: str
    """`within`, `between` or `official`."""
    images: TrialImages
    by_way: dict[int, list[Trial]]
    asked: int
    """Trials of each way that were asked for, or published."""
    shots: int = 1
    seed: int | None = None
    """None where the trials are published."""
    classes_left_out: list[str] = field(default_factory=list)
    """Those with too few images by different writers for so many shots."""


def drawn_trials(
    files: Sequence[ImageFile],
    reader: ImageReader,
    *,
    ways: Sequence[int],
    shots: int,
    trials: int,
    seed: int,
    protocol: str | None = None,
) -> TrialSets:
    """Trials drawn at random: see `draw_trials`.

    Args:
      protocol: `within` or `between` groups; None: within, unless no group has two usable classes.

    Raises:
      InputError: a number is out of range, no usable images, or no group of so many classes with
        so many images.
    """
    if not ways or min(ways) < 2 or shots < 1 or trials < 1 or seed < 0:
        raise InputError(
            "--way must be at least 2, --shots and --trials at least 1 and --seed at least 0"
        )
    images = sound_images(files, reader)
    if protocol is None:
        within = largest_way(images.index, PROTOCOL_WITHIN, shots=shots)
        between = largest_way(images.index, PROTOCOL_BETWEEN, shots=shots)
        protocol = PROTOCOL_BETWEEN if between and not within else PROTOCOL_WITHIN
    draw = partial(draw_trials, images.index, protocol, trials=trials, seed=seed)
    return TrialSets(
        source=files[0].container,
        protocol=protocol,
        images=images,
        by_way={way: list(draw(way=way, shots=shots)) for way in ways},
        asked=trials,
        shots=shots,
        seed=seed,
        classes_left_out=classes_left_out(images.index, shots=shots),
    )


def official_trials(container: Path, reader: ImageReader) -> TrialSets:
    """The published one-shot trials of Omniglot (Lake et al. 2015), `all_runs.zip`.

    Raises:
      InputError: they are not laid out as they should be, or no trial has all its images.
    """
    runs = read_official_runs(container)
    images = sound_images(runs.images, reader, copies=True)
    by_way: dict[int, list[Trial]] = {}
    for trial in sound_trials(runs.trials, images.listing):
        by_way.setdefault(trial.way, []).append(trial)
    if not by_way:
        raise InputError(f"{container}: each trial lacks an image that can be read")
    return TrialSets(
        source=str(container),
        protocol=PROTOCOL_OFFICIAL,
        images=images,
        by_way=dict(sorted(by_way.items(), reverse=True)),
        asked=len(runs.trials),
    )


@dataclass(frozen=True)
class RecordedTrials:
    """The trials of an Examples artifact."""

    images: list[bytes]
    """Distinct ones, encoded; by the numbers that the trials have for them."""
    classes: list[str]
    """Of each, `<group>/<class>`."""
    trials: dict[tuple[str, int], list[Trial]]
    """By protocol and way."""
    pairs: dict[str, list[tuple[int, int, int]]]
    """Single pairs by protocol: two images, and 1 where they show one class, else 0."""


def recorded_trials(examples: Path) -> RecordedTrials:
    """Reads the trials and single pairs of the `one_shot` split.

    Malformed trials, which cannot be won, are left out.

    Args:
      examples: URI of an Examples artifact.
    """
    numbers: dict[bytes, int] = {}
    classes: list[str] = []
    recorded: dict[tuple[str, int, str], list[tuple[int, int, int]]] = {}
    single: dict[str, list[tuple[int, int, int]]] = {}
    for pair in read_pairs(examples / f"Split-{ONE_SHOT_SPLIT}"):
        query = numbers.setdefault(pair.image_a, len(numbers))
        candidate = numbers.setdefault(pair.image_b, len(numbers))
        for image, name in ((query, pair.class_a), (candidate, pair.class_b)):
            if image == len(classes):
                classes.append(name)
        if pair.trial:
            of_trial = recorded.setdefault((pair.protocol, pair.way, pair.trial), [])
        else:
            of_trial = single.setdefault(pair.protocol, [])
        of_trial.append((query, candidate, pair.label))
    trials: dict[tuple[str, int], list[Trial]] = {}
    for (protocol, way, name), pairs in recorded.items():
        queries, candidates, labels = zip(*pairs, strict=True)
        if len(pairs) == way and labels.count(1) == 1:
            support = tuple((candidate,) for candidate in candidates)
            trial = Trial(name, queries[0], support, labels.index(1))
            trials.setdefault((protocol, way), []).append(trial)
    return RecordedTrials(list(numbers), classes, trials, single)
