"""Measures the one-shot accuracy of any exported model on any images, outside the pipeline."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from components.evaluator.baselines import baselines
from components.evaluator.forgeries import Verification, verify_signatures
from components.evaluator.mistakes import Confusion, most_confused
from components.evaluator.recognisers import ModelRecogniser, answer
from components.evaluator.statistics import wilson_interval
from components.evaluator.trials import TrialSets, drawn_trials
from data_ingest.errors import InputError
from data_ingest.sampling.protocols import PROTOCOL_BETWEEN, PROTOCOL_WITHIN
from data_ingest.sampling.trials import Trial
from data_ingest.sources.kinds import ANY_KIND, KINDS, Crop, Kind
from data_ingest.sources.layout import ImageFile, ImageReader
from serving.saved_model.contract import EXTRA, MODEL_CARD
from serving.saved_model.loader import LoadedModel
from serving.saved_model.versions import is_complete, newest_complete

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
class WayResult(Accuracy):
    """What came of the trials of so many candidates."""

    way: int
    chance: float
    by_group: dict[str, float]
    """Accuracy of the model."""
    groups_without_trials: list[str]
    baselines: dict[str, Accuracy]
    """By `Baseline.name`, on the same trials."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a model, by way."""

    model: Path
    trials: TrialSets
    results: list[WayResult]
    confusions: list[Confusion]
    """Classes that were taken for each other, over all ways, the most likely to be first."""
    verification: list[Verification]
    """Of signatures with forgeries; empty for other images."""

    def document(self) -> dict[str, Any]:
        """As JSON values; the figures of the first way stand at the top as well."""
        results = [asdict(result) for result in self.results]
        return results[0] | {
            "model": str(self.model),
            "images": self.trials.source,
            "protocol": self.trials.protocol,
            "shots": self.trials.shots,
            "trials": self.trials.asked,
            "seed": self.trials.seed,
            "rejected_images": self.trials.images.rejected,
            "classes_left_out": self.trials.classes_left_out,
            "results": results,
            "verification": [one.document() for one in self.verification],
            "confusions": [one.document(self.trials.images) for one in self.confusions],
        }


def evaluate_model(model: Path, trials: TrialSets, *, slow_baselines: bool = False) -> Evaluation:
    """Has an exported model answer trials.

    Several support images of a class are combined by the mean of their embeddings, as in the
    gallery: `match(query, mean)`. On held-out background alphabets that is right more often than
    the nearest of them or the mean of their logits, and it costs one comparison a class.
    Candidates that tie for the best score share the credit, so that a model with constant output
    scores 1 / way.

    Args:
      model: folder of a SavedModel, as `find_model` finds it.
      trials: what is asked. Recognisers without learning answer them, too; a class is as near to
        these as the nearest of its support images.
      slow_baselines: whether those that take long do so as well.
    """
    images = trials.images
    everything = [trial for part in trials.by_way.values() for trial in part]
    with LoadedModel(model) as loaded:
        others = range(len(images.index)) if images.index.has_forgeries else ()
        recogniser = ModelRecogniser(loaded, images.encoded, everything, others=others)
        answers = {way: answer(recogniser, part) for way, part in trials.by_way.items()}
        seed = trials.seed or 0
        verification = verify_signatures(recogniser, images.index, seed=seed)
    compared = {
        baseline.name: baseline.recogniser(images.encoded)
        for baseline in baselines(_kind_of(model), slow=slow_baselines)
    }
    results = []
    for way, part in trials.by_way.items():
        by_group = _by_group(trials, part, answers[way].earned)
        result = WayResult(
            **vars(_accuracy(answers[way].earned)),
            way=way,
            chance=1 / way,
            by_group=by_group,
            groups_without_trials=[]
            if trials.protocol == PROTOCOL_BETWEEN
            else sorted(set(images.index.groups) - set(by_group)),
            baselines={name: _accuracy(answer(one, part).earned) for name, one in compared.items()},
        )
        results.append(result)
    wrong = [one for of_way in answers.values() for one in of_way.wrong]
    confusions = most_confused(images.index.class_name, everything, wrong, most=_MOST_CONFUSIONS)
    return Evaluation(model, trials, results, confusions, verification)


def find_model(place: Path) -> Path:
    """The folder of a SavedModel: `place` itself, or the newest version in it.

    Raises:
      InputError: there is neither.
    """
    found = place if is_complete(place) else newest_complete(place)
    if found is None:
        raise InputError(
            f"--model {place}: no SavedModel here; give the folder of a version, or of versions"
        )
    return found


def _kind_of(model: Path) -> Kind:
    """The kind of images that a model is for; a drawing's where its card does not say."""
    try:
        kind = json.loads((model / EXTRA / MODEL_CARD).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return "drawing"
    return kind if kind in KINDS else "drawing"


def run_trials(
    model: LoadedModel,
    files: Sequence[ImageFile],
    *,
    way: int,
    trials: int,
    seed: int,
    crop: Crop | None = None,
) -> tuple[Accuracy, dict[str, float]]:
    """Has a model answer one-shot trials within groups, on images of one container or several.

    Args:
      model: the model.
      files: the images.
      way: candidates of a trial.
      trials: how many.
      seed: of the trials.
      crop: what is cut out of the images.

    Returns:
      accuracy, and that by group.

    Raises:
      InputError: no usable images, or no group of `way` classes.
    """
    with ImageReader(ANY_KIND._replace(crop=crop)) as reader:
        drawn = drawn_trials(
            files, reader, ways=[way], shots=1, trials=trials, seed=seed, protocol=PROTOCOL_WITHIN
        )
        part = drawn.by_way[way]
        earned = answer(ModelRecogniser(model, drawn.images.encoded, part), part).earned
    return _accuracy(earned), _by_group(drawn, part, earned)


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
