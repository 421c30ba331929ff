"""One-shot accuracy of any exported model on any images, through the exported signatures alone."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from components.intervals import wilson_interval
from components.one_shot import trial_credit
from data_ingest.errors import InputError
from data_ingest.index import ImageIndex, ImageRef, sort_order
from data_ingest.layout import ImageFile, ImageReader, list_images
from data_ingest.sampling import Trial, within_group_trials
from serving.loader import LoadedModel

_LOGGER = logging.getLogger(__name__)
_BATCH = 256
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """Within-group one-shot accuracy in [0, 1], with its 95 % interval and number of trials."""

    model: str
    images: str
    way: int
    trials: int
    seed: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    accuracy_n: int
    chance: float
    by_group: dict[str, float]
    groups_without_trials: list[str]
    rejected_images: int


def evaluate_model(
    model: Path, images: Path, *, way: int = 20, trials: int = 400, seed: int = 1
) -> Evaluation:
    """Runs `trials` within-group trials of `way` candidates on a folder or zip of images.

    Query and support are drawn by two different writers where writers are known. Candidates that
    tie for the best score share the credit, so a model with constant output scores 1 / way.

    Raises:
      InputError: no SavedModel at `model`, no usable images, or no group of `way` classes.
    """
    if way < 2 or trials < 1 or seed < 0:
        raise InputError("--way must be at least 2, --trials at least 1 and --seed at least 0")
    if not (model / "saved_model.pb").is_file():
        raise InputError(f"--model {model}: no saved_model.pb here; give the folder of a version")
    with LoadedModel(model) as loaded:
        result = run_trials(loaded, list_images(images), way=way, trials=trials, seed=seed)
    accuracy = float(np.mean(result.earned))
    return Evaluation(
        model=str(model),
        images=str(images),
        way=way,
        trials=trials,
        seed=seed,
        accuracy=accuracy,
        accuracy_ci95=wilson_interval(sum(result.earned), len(result.earned)),
        accuracy_n=len(result.earned),
        chance=1 / way,
        by_group=result.by_group,
        groups_without_trials=sorted(set(result.groups) - set(result.by_group)),
        rejected_images=result.rejected_images,
    )


@dataclass(frozen=True)
class TrialResults:
    """What a model made of one-shot trials."""

    earned: list[float]
    """Credit of each trial, in [0, 1]."""
    by_group: dict[str, float]
    """Mean credit of the trials of each group that has any."""
    groups: tuple[str, ...]
    """All groups of the usable images."""
    rejected_images: int


def run_trials(
    model: LoadedModel, files: Sequence[ImageFile], *, way: int, trials: int, seed: int
) -> TrialResults:
    """Runs within-group trials on some images, of one container or several.

    Raises:
      InputError: no usable images, or no group of `way` classes.
    """
    usable, contents, rejected = _read(files)
    refs = [ImageRef(f.group, f.class_name, f.writer, f"{f.uri}\0{f.container}") for f in usable]
    contents = [contents[position] for position in sort_order(refs)]
    index = ImageIndex.build(refs)
    chosen = list(within_group_trials(index, way=way, trials=trials, seed=seed))
    needed = sorted({row for trial in chosen for row in (trial.query, *trial.support)})
    vectors = _embed(model, [contents[row] for row in needed])
    scores = _score(model, chosen, dict(zip(needed, vectors, strict=True)))
    earned = [_earned(logits, trial) for logits, trial in zip(scores, chosen, strict=True)]
    by_group: dict[str, list[float]] = defaultdict(list)
    for credit, trial in zip(earned, chosen, strict=True):
        by_group[index.group_name(trial.query)].append(credit)
    return TrialResults(
        earned,
        {group: float(np.mean(values)) for group, values in sorted(by_group.items())},
        index.groups,
        rejected,
    )


def _read(files: Sequence[ImageFile]) -> tuple[list[ImageFile], list[bytes], int]:
    usable, contents = [], []
    seen: set[tuple[str, bytes]] = set()
    rejected = 0
    with ImageReader() as reader:
        for file in files:
            data, reason = reader.read_checked(file)
            if reason is not None:
                _LOGGER.warning("%s left out: %s", file.member, reason)
                rejected += 1
                continue
            # A query that is a copy of its candidate would be no question.
            copy = (file.class_name, hashlib.blake2b(data, digest_size=16).digest())
            if copy not in seen:
                seen.add(copy)
                usable.append(file)
                contents.append(data)
    if not usable:
        raise InputError(f"{files[0].container}: none of its {len(files)} images can be read")
    return usable, contents, rejected


def _embed(model: LoadedModel, images: Sequence[bytes]) -> Floats:
    """`[N, D]` vectors of encoded images."""
    parts = []
    for start in range(0, len(images), _BATCH):
        batch = np.array(images[start : start + _BATCH], dtype=object)
        parts.append(model.run("embed", {"image": batch})["embedding"])
        if start // _BATCH % 20 == 19:
            _LOGGER.info("embedded %d of %d images", start + len(batch), len(images))
    return np.concatenate(parts)


def _score(model: LoadedModel, trials: Sequence[Trial], vectors: dict[int, Floats]) -> list[Floats]:
    """Logits of each trial's candidates, `[way]` a trial: scores near 1 would tie in float32."""
    rows = []
    per_call = max(1, 4096 // max(len(trial.support) for trial in trials))
    for start in range(0, len(trials), per_call):
        part = trials[start : start + per_call]
        queries = np.stack([vectors[trial.query] for trial in part for _ in trial.support])
        supports = np.stack([vectors[row] for trial in part for row in trial.support])
        logits = model.run("match", {"embedding_a": queries, "embedding_b": supports})["logit"]
        rows += np.split(logits, np.cumsum([len(trial.support) for trial in part])[:-1])
    return rows


def _earned(logits: Floats, trial: Trial) -> float:
    labels = np.zeros(len(trial.support), np.int64)
    labels[trial.answer] = 1
    credit = trial_credit(labels, logits, np.full(len(labels), trial.way))
    if credit is None:
        raise ValueError(f"{trial.trial_id} is malformed")
    return credit


def print_evaluation(result: Evaluation, console: Console) -> None:
    """The figures for a person."""
    low, high = result.accuracy_ci95
    console.print(
        f"{result.way}-way within-group one-shot accuracy: [bold]{100 * result.accuracy:.1f} %[/]"
        f"  (95 % interval {100 * low:.1f} to {100 * high:.1f}, {result.accuracy_n} trials, "
        f"chance {100 * result.chance:.1f} %)",
        soft_wrap=True,
    )
    if len(result.by_group) > 1:
        table = Table()
        table.add_column("group")
        table.add_column("accuracy", justify="right")
        for group, accuracy in result.by_group.items():
            table.add_row(group, f"{100 * accuracy:.1f} %")
        console.print(table)
    if result.groups_without_trials:
        console.print(
            f"Fewer than {result.way} classes: {', '.join(result.groups_without_trials)}",
            soft_wrap=True,
        )
    if result.rejected_images:
        console.print(f"{result.rejected_images} unreadable images were left out")
