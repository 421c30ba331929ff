"""One-shot accuracy of any exported model on any images, through the exported signatures alone."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from components.evaluator.baselines import BASELINES, Baseline
from components.evaluator.mistakes import Confusion, Wrong, most_confused
from components.evaluator.statistics import trial_credit, wilson_interval
from components.evaluator.trials import TrialImages, TrialSets, within_trials
from data_ingest.errors import InputError
from data_ingest.sampling.trials import Trial
from data_ingest.sources.layout import ImageFile, ImageReader
from serving.saved_model.loader import LoadedModel
from serving.saved_model.versions import is_complete

Recogniser = Callable[[Sequence[Trial]], Iterator[npt.NDArray[np.floating[Any]]]]

_log = logging.getLogger(__name__)
_BATCH: Final = 256
_BATCH_BYTES: Final = 16 * 2**20
_PAIRS_A_CALL: Final = 4096
_VECTORS_A_CALL: Final = 32_768
_KEPT_PICTURES: Final = 1024
"""More than a set of trials has: 40 classes of a query and 24 references."""
_SECONDS_A_LINE: Final = 5.0
T = TypeVar("T")


class ModelRecogniser:
    """An exported model, through its signatures alone.

    Several references of a class are used as their mean vector, which is what the gallery does:
    the logit is `match` of the query's embedding and the mean of the references' embeddings.

    Attributes:
      vectors: `float32[N, D]`, embeddings of the rows it was made for, ascending.
    """

    def __init__(self, model: LoadedModel, images: TrialImages, rows: Iterable[int]) -> None:
        """Embeds the images of these rows, each once; only their vectors are kept."""
        self._model = model
        rows = sorted(set(rows))
        self._position = np.full(len(images.index), -1, np.int64)
        self._position[rows] = np.arange(len(rows))
        batches = _batches(images.encoded(row) for row in told(rows, "images", total=len(rows)))
        parts = [model.run("embed", {"image": batch})["embedding"] for batch in batches]
        self.vectors = np.concatenate(parts)

    def __call__(self, trials: Sequence[Trial]) -> Iterator[npt.NDArray[np.floating[Any]]]:
        """Logits, `float32[way]` a trial: scores near 1 would tie in float32."""
        way, shots = np.shape(trials[0].support)
        per_call = max(1, min(_PAIRS_A_CALL // way, _VECTORS_A_CALL // (way * shots)))
        for start in range(0, len(trials), per_call):
            part = trials[start : start + per_call]
            queries = self.vectors[self._position[[trial.query for trial in part]]]
            references = self.vectors[self._position[[trial.support for trial in part]]]
            pairs = {
                "embedding_a": np.repeat(queries, way, axis=0),
                "embedding_b": references.mean(axis=2).reshape(len(part) * way, -1),
            }
            yield from self._model.run("match", pairs)["logit"].reshape(len(part), way)


class BaselineRecogniser:
    """A baseline: a class is as near as the nearest of its references."""

    def __init__(self, baseline: Baseline, images: TrialImages) -> None:
        self._baseline = baseline
        # The trials of a set have their images in common.
        self._features = lru_cache(_KEPT_PICTURES)(
            lambda row: baseline.features(images.encoded(row))
        )

    def __call__(self, trials: Sequence[Trial]) -> Iterator[npt.NDArray[np.floating[Any]]]:
        """Negated distances, `float64[way]` a trial; those of the nearest classes are exact."""
        for trial in told(trials, f"trials by {self._baseline.title}", total=len(trials)):
            query = self._features(trial.query)
            others = [self._features(row) for shots in trial.support for row in shots]
            distances = np.array(self._baseline.distances(query, others))
            yield -distances.reshape(trial.way, -1).min(axis=1)


def _batches(encoded: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Images in batches of so many, or, where they are large, of so many bytes."""
    batch: list[bytes] = []
    for image in encoded:
        batch.append(image)
        if len(batch) == _BATCH or sum(map(len, batch)) >= _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def told(items: Iterable[T], what: str, *, total: int) -> Iterator[T]:
    """The items; how many are done is logged every few seconds."""
    line = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - line >= _SECONDS_A_LINE:
            _log.info("%s of %s %s", f"{done:,}", f"{total:,}", what)
            line = time.monotonic()
        yield item


_MOST_CONFUSIONS: Final = 24


@dataclass(frozen=True)
class Accuracy:
    """Accuracy in [0, 1], with its 95 % interval and number of trials.

    The interval (Wilson's) takes the trials as independent; those of one set share their images.
    """

    accuracy: float
    accuracy_ci95: tuple[float, float]
    accuracy_n: int


@dataclass(frozen=True)
class WayResult:
    """What came of the trials of so many candidates."""

    way: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    accuracy_n: int
    chance: float
    by_group: dict[str, float]
    """Accuracy of the model."""
    groups_without_trials: list[str]
    baselines: dict[str, Accuracy]
    """By `Baseline.name`, on the same trials; empty where none were asked for."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a model, by way."""

    model: str
    images: str
    protocol: str
    shots: int
    trials: int
    """Asked for, of each way."""
    seed: int | None
    """None where the trials are published."""
    rejected_images: int
    classes_left_out: list[str]
    """Those with too few images by different writers for so many shots."""
    results: list[WayResult]
    confusions: list[Confusion]
    """Classes that were taken for each other, over all ways, the most likely to be first."""

    def document(self) -> dict[str, Any]:
        """As JSON values; the figures of the first way stand at the top as well."""
        confusions = [confusion.document() for confusion in self.confusions]
        return asdict(self.results[0]) | asdict(self) | {"confusions": confusions}


def evaluate_model(model: Path, trials: TrialSets, *, baselines: bool = False) -> Evaluation:
    """Has an exported model answer trials.

    Several references of a class are combined by the mean of their embeddings, as in the gallery:
    `match(query, mean)`. On held-out background alphabets that is right more often than the nearest
    of the references or the mean of their logits (docs/accuracy.md has the figures), and it costs
    one comparison a class. Candidates that tie for the best score share the credit, so that a model
    with constant output scores 1 / way.

    Args:
      model: folder of a SavedModel.
      trials: what is asked.
      baselines: whether recognisers without learning answer the same trials. A class is as near to
        them as the nearest of its references.

    Raises:
      InputError: no SavedModel at `model`.
    """
    check_model(model)
    everything = [trial for part in trials.by_way.values() for trial in part]
    rows = {row for trial in everything for row in trial.images}
    results, wrong = [], []
    with LoadedModel(model) as loaded:
        recogniser = ModelRecogniser(loaded, trials.images, rows)
        answers = {way: answer(recogniser, part) for way, part in trials.by_way.items()}
    compared = {
        baseline.name: BaselineRecogniser(baseline, trials.images)
        for baseline in (BASELINES if baselines else ())
    }
    for way, part in trials.by_way.items():
        wrong += answers[way].wrong
        by_group = _by_group(trials, part, answers[way].earned)
        results.append(
            WayResult(
                way=way,
                **vars(_accuracy(answers[way].earned)),
                chance=1 / way,
                by_group=by_group,
                groups_without_trials=sorted(set(trials.images.index.groups) - set(by_group)),
                baselines={
                    name: _accuracy(answer(one, part).earned) for name, one in compared.items()
                },
            )
        )
    return Evaluation(
        model=str(model),
        images=trials.source,
        protocol=trials.protocol,
        shots=trials.shots,
        trials=trials.asked,
        seed=trials.seed,
        rejected_images=trials.images.rejected,
        classes_left_out=trials.classes_left_out,
        results=results,
        confusions=most_confused(trials.images, everything, wrong, most=_MOST_CONFUSIONS),
    )


def check_model(model: Path) -> None:
    """Raises `InputError` where there is no SavedModel."""
    if not is_complete(model):
        raise InputError(f"--model {model}: no saved_model.pb here; give the folder of a version")


@dataclass(frozen=True)
class Answers:
    """What a recogniser made of trials."""

    earned: list[float]
    """Credit of each, in [0, 1]."""
    wrong: list[Wrong]


def answer(recogniser: Recogniser, trials: Sequence[Trial]) -> Answers:
    """Has a recogniser answer trials, all of as many ways and shots."""
    earned, wrong = [], []
    for trial, nearness in zip(trials, recogniser(trials), strict=True):
        way = trial.way
        labels = np.zeros(way, np.int64)
        labels[trial.answer] = 1
        credit = trial_credit(labels, nearness, np.full(way, way))
        if credit is None:
            raise ValueError(f"{trial.trial_id} is malformed")
        earned.append(credit)
        if credit < 1:
            others = np.where(labels == 1, -np.inf, nearness)
            chosen = int(np.argmax(others))
            wrong.append(Wrong(trial, chosen, float(nearness[chosen] - nearness[trial.answer])))
    return Answers(earned, wrong)


@dataclass(frozen=True)
class TrialResults:
    """What a model made of one-shot trials."""

    earned: list[float]
    """Credit of each trial, in [0, 1]."""
    by_group: dict[str, float]
    """Mean credit of the trials of each group that has any."""


def run_trials(
    model: LoadedModel, files: Sequence[ImageFile], *, way: int, trials: int, seed: int
) -> TrialResults:
    """Has a model answer one-shot trials within groups, on images of one container or several.

    Raises:
      InputError: no usable images, or no group of `way` classes.
    """
    with ImageReader() as reader:
        drawn = within_trials(files, reader, ways=[way], shots=1, trials=trials, seed=seed)
        part = drawn.by_way[way]
        rows = {row for trial in part for row in trial.images}
        earned = answer(ModelRecogniser(model, drawn.images, rows), part).earned
    return TrialResults(earned, _by_group(drawn, part, earned))


def _accuracy(earned: Sequence[float]) -> Accuracy:
    interval = wilson_interval(sum(earned), len(earned))
    return Accuracy(float(np.mean(earned)), interval, len(earned))


def _by_group(
    trials: TrialSets, part: Sequence[Trial], earned: Sequence[float]
) -> dict[str, float]:
    earned_in: dict[str, list[float]] = defaultdict(list)
    for trial, credit in zip(part, earned, strict=True):
        earned_in[trials.images.index.group_name(trial.query)].append(credit)
    return {group: float(np.mean(values)) for group, values in sorted(earned_in.items())}
