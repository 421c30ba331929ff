"""Examines a model on the trials and pairs that it was judged by: pictures and curves of it."""

import base64
import io
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.special import expit

from components.evaluator.embedding_map import draw_map
from components.evaluator.forgeries import FORGERIES, roc
from components.evaluator.mistakes import most_confused
from components.evaluator.recognisers import ModelRecogniser, answer
from components.evaluator.statistics import (
    FALSE_ACCEPTS,
    Z95,
    ScoredPairs,
    error_rates,
    wilson_interval,
)
from components.evaluator.trials import RecordedTrials, recorded_trials
from data_ingest.records.features import split_files
from data_ingest.records.unsound import naming_unsound
from data_ingest.sampling.protocols import (
    ONE_SHOT_SPLIT,
    PROTOCOL_BETWEEN,
    PROTOCOL_OFFICIAL,
    PROTOCOL_WITHIN,
)
from data_ingest.sampling.trials import Trial
from data_ingest.sources.images import upright
from serving.saved_model.loader import LoadedModel

MOST_WAYS: Final = 40
_TRIALS: Final = 4
"""Shown, of right and of wrong ones."""
_PAIRS: Final = 8
"""Shown, of false accepts and of false rejects."""
_CONFUSIONS: Final = 12
_CLASSES: Final = 300
"""Of which the curve over ways is made, at most."""
_CURVE_POINTS: Final = 200
_BINS: Final = 40
_RELIABILITY_BINS: Final = 10
_THUMBNAIL: Final = 105
_INK_COLOURS: Final = 4
"""Pictures of no more are drawings, whose edges stay sharp as PNG."""

Floats = npt.NDArray[np.float64]


def examine(*, model: Path, examples: Path) -> dict[str, Any]:
    """Has a model answer all trials and pairs of the `one_shot` split, each image embedded once.

    Args:
      model: folder of a SavedModel.
      examples: URI of an Examples artifact.

    Returns:
      JSON values. Scores, rates and accuracies are in [0, 1]; images are numbers of `thumbnails`,
      which are data URIs. What the split has no records for is empty.

    Raises:
      InputError: as `naming_unsound`.
    """
    with naming_unsound(split_files(examples / f"Split-{ONE_SHOT_SPLIT}")):
        recorded = recorded_trials(examples)
    trials = [trial for part in recorded.trials.values() for trial in part]
    paired = [image for pairs in recorded.pairs.values() for pair in pairs for image in pair[:2]]
    with LoadedModel(model) as loaded:
        recogniser = ModelRecogniser(
            loaded, recorded.images.__getitem__, trials, others=[*paired, *_own(recorded)]
        )
        found = (
            _trials(recogniser, recorded)
            | _pairs(recogniser, recorded)
            | {"ways": _ways(recogniser, recorded), "map": _map(recogniser, recorded)}
        )
    shown = sorted(set(_images(found)))
    return found | {"thumbnails": {str(one): thumbnail(recorded.images[one]) for one in shown}}


def thumbnail(encoded: bytes) -> str:
    """A data URI of an image at most 105 pixels long and wide, as those of Omniglot are."""
    with Image.open(io.BytesIO(encoded)) as opened:
        image = upright(opened).convert("RGB")
    drawn = image.getcolors(_INK_COLOURS) is not None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    if drawn:
        image.quantize(2 * _INK_COLOURS).save(stream, "png", optimize=True)
    else:
        image.save(stream, "webp", quality=80)
    return data_uri(stream.getvalue(), "png" if drawn else "webp")


def data_uri(image: bytes, kind: str) -> str:
    """An image as the address that a page has it under."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _images(found: Mapping[str, Any]) -> list[int]:
    """Numbers of the images that are shown."""
    trials = [*found["trials"].get("wrong", ()), *found["trials"].get("right", ())]
    pairs = [*found["false_accepts"], *found["false_rejects"]]
    return [
        *(trial["query"] for trial in trials),
        *(candidate["image"] for trial in trials for candidate in trial["candidates"]),
        *(image for pair in pairs for image in pair["images"]),
        *(image for one in found["confusions"] for image in one["images"]),
    ]


def _trials(recogniser: ModelRecogniser, recorded: RecordedTrials) -> dict[str, Any]:
    """The most wrong and some right trials of the hardest protocol, and the confused classes."""
    nearness = {key: list(recogniser(trials)) for key, trials in recorded.trials.items()}
    own, wrong = [], []
    for key, trials in recorded.trials.items():
        if key[0] != PROTOCOL_OFFICIAL:
            own += trials
            wrong += answer(lambda _, key=key: iter(nearness[key]), trials).wrong  # type: ignore[misc]
    confusions = [
        {
            "classes": one.classes,
            "mistakes": one.mistakes,
            "trials": one.trials,
            "images": one.rows,
        }
        for one in most_confused(recorded.classes.__getitem__, own, wrong, most=_CONFUSIONS)
    ]
    order = (PROTOCOL_OFFICIAL, PROTOCOL_WITHIN, PROTOCOL_BETWEEN)
    if not recorded.trials:
        return {"trials": {}, "confusions": confusions}
    hardest = min(recorded.trials, key=lambda key: (order.index(key[0]), -key[1]))
    ranked = [
        (_margin(trial, near), trial, near)
        for trial, near in zip(recorded.trials[hardest], nearness[hardest], strict=True)
        if not np.isnan(near).any()
    ]
    ranked.sort(key=lambda one: one[0])
    # Where the right candidate ties with another, the trial is not won.
    lost = [one for one in ranked if one[0] <= 0]
    won = ranked[len(lost) :]
    spread = np.unique(np.linspace(0, len(won) - 1, min(len(won), _TRIALS)).round()).astype(int)
    return {
        "trials": {
            "protocol": hardest[0],
            "way": hardest[1],
            "wrong": [_ranking(recorded, *one[1:]) for one in lost[:_TRIALS]],
            "right": [_ranking(recorded, *won[at][1:]) for at in spread],
        },
        "confusions": confusions,
    }


def _margin(trial: Trial, nearness: npt.NDArray[np.floating[Any]]) -> float:
    """By how much the right candidate is nearer than the nearest other one, in logits."""
    others = np.delete(nearness, trial.answer)
    return float(nearness[trial.answer]) - float(others.max())


def _ranking(
    recorded: RecordedTrials, trial: Trial, nearness: npt.NDArray[np.floating[Any]]
) -> dict[str, Any]:
    order = np.argsort(-nearness, kind="stable")
    return {
        "class": recorded.classes[trial.query],
        "query": trial.query,
        "candidates": [
            {
                "image": trial.support[at][0],
                "score": float(expit(nearness[at])),
                "right": bool(at == trial.answer),
            }
            for at in order
        ],
    }


def _pairs(recogniser: ModelRecogniser, recorded: RecordedTrials) -> dict[str, Any]:
    """What pairs outside trials say: errors, rates by threshold, histogram, reliability."""
    scored: dict[str, tuple[Floats, npt.NDArray[np.int64]]] = {}
    every = []
    for protocol, pairs in sorted(recorded.pairs.items()):
        first, second, labels = np.array(pairs, np.int64).T
        logits = recogniser.verify(second, first[:, np.newaxis]).astype(np.float64)
        known = ~np.isnan(logits)
        scored[protocol] = logits[known], labels[known]
        every += [pair for pair, is_known in zip(pairs, known, strict=True) if is_known]
    empty: dict[str, Any] = {"false_accepts": [], "false_rejects": [], "curve": {}, "forgeries": {}}
    if not every:
        return empty
    logits, labels = (np.concatenate(parts) for parts in zip(*scored.values(), strict=True))
    order = np.argsort(logits, kind="stable")
    different = [at for at in order[::-1] if labels[at] == 0 and logits[at] >= 0]
    same = [at for at in order if labels[at] == 1 and logits[at] < 0]

    def shown(worst: list[Any]) -> list[dict[str, Any]]:
        return [
            {
                "images": every[at][:2],
                "classes": [recorded.classes[image] for image in every[at][:2]],
                "score": float(expit(logits[at])),
            }
            for at in worst[:_PAIRS]
        ]

    counted = ScoredPairs(logits, labels)
    both = counted.same.any() and counted.different.any()
    return {
        "false_accepts": shown(different),
        "false_rejects": shown(same),
        "curve": _curve(counted, logits, labels) if both else {},
        "forgeries": {
            kind: roc(counts.same, counts.different)
            for kind in FORGERIES
            if kind in scored and (counts := ScoredPairs(*scored[kind])).same.any()
        },
    }


def _curve(counted: ScoredPairs, logits: Floats, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    rejected, accepted = error_rates(counted.same, counted.different)
    scores = expit(counted.logits)
    last = len(scores) - 1
    points = {
        "half": int(np.searchsorted(counted.logits, 0)),
        "equal": int(np.argmin(np.abs(rejected - accepted))),
        "few_accepts": int(np.argmax(accepted <= FALSE_ACCEPTS)),
    }
    kept = np.unique(np.linspace(0, len(rejected) - 1, _CURVE_POINTS).round().astype(int))
    edges = np.linspace(logits.min(), logits.max(), _BINS + 1)
    return {
        "false_accepts": accepted[kept].tolist(),
        "false_rejects": rejected[kept].tolist(),
        "points": {
            name: {
                "score": 0.5 if name == "half" else float(scores[min(at, last)]),
                "false_accepts": float(accepted[at]),
                "false_rejects": float(rejected[at]),
            }
            for name, at in points.items()
        },
        "histogram": {
            "logits": edges.tolist(),
            "same": np.histogram(logits[labels == 1], edges)[0].tolist(),
            "different": np.histogram(logits[labels == 0], edges)[0].tolist(),
        },
        "reliability": _reliability(expit(logits), labels),
    }


def _reliability(scores: Floats, labels: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    bins = np.minimum((scores * _RELIABILITY_BINS).astype(int), _RELIABILITY_BINS - 1)
    found = []
    for one in np.unique(bins):
        inside = bins == one
        n, same = int(inside.sum()), int(labels[inside].sum())
        low, high = wilson_interval(same, n)
        mean = float(scores[inside].mean())
        found.append({"score": mean, "same": same / n, "low": low, "high": high, "pairs": n})
    return found


def _own(recorded: RecordedTrials) -> list[int]:
    """Images of the data's own classes: those of published trials have no names of their own."""
    published = {
        image
        for (protocol, _), trials in recorded.trials.items()
        if protocol == PROTOCOL_OFFICIAL
        for trial in trials
        for image in trial.images
    }
    return [image for image in range(len(recorded.images)) if image not in published]


def _by_class(recorded: RecordedTrials) -> dict[str, list[int]]:
    """The data's own images by class, in the order of their names."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for image in _own(recorded):
        found[recorded.classes[image]].append(image)
    return dict(sorted(found.items()))


def _ways(recogniser: ModelRecogniser, recorded: RecordedTrials) -> dict[str, Any]:
    """Accuracy over the number of candidates, from every class in one comparison each.

    What a query of one class would win is computed from how many of the other classes' images are
    less like it than its own class's: no trials are drawn.
    """
    images = {name: own for name, own in _by_class(recorded).items() if len(own) > 1}
    chosen = np.random.default_rng(0).permutation(list(images))[:_CLASSES]
    if len(chosen) < 2:
        return {}
    queries = np.array([images[name][0] for name in chosen])
    candidates = np.array([images[name][1] for name in chosen])
    size = len(chosen)
    logits = recogniser.verify(np.repeat(queries, size), np.tile(candidates, size)[:, np.newaxis])
    nearness = logits.reshape(size, size)
    below = nearness < np.diag(nearness)[:, np.newaxis]
    groups = np.array([name.rpartition("/")[0] for name in chosen])
    others = ~np.eye(size, dtype=bool)
    within = others & (groups[:, np.newaxis] == groups)
    curves = {PROTOCOL_WITHIN: _expected(below, within), PROTOCOL_BETWEEN: _expected(below, others)}
    if len(np.unique(groups)) == 1:
        # Then the two are the same.
        del curves[PROTOCOL_BETWEEN]
    return {name: points for name, points in curves.items() if points}


def _expected(
    below: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_]
) -> list[dict[str, float]]:
    """Expected accuracy by the number of candidates, as far as half of the queries have so many."""
    less_alike = (below & others).sum(axis=1)
    there = others.sum(axis=1)
    won = np.ones(len(below))
    points = []
    for ways in range(2, MOST_WAYS + 1):
        left = there - (ways - 2)
        usable = left > 0
        if usable.sum() < max(2, len(below) / 2):
            break
        won = won * np.clip(less_alike - (ways - 2), 0, None) / np.maximum(left, 1)
        mean = float(won[usable].mean())
        spread = Z95 * float(won[usable].std(ddof=1)) / float(np.sqrt(usable.sum()))
        points.append(
            {
                "ways": ways,
                "accuracy": mean,
                "low": max(0.0, mean - spread),
                "high": min(1.0, mean + spread),
            }
        )
    return points


def _map(recogniser: ModelRecogniser, recorded: RecordedTrials) -> dict[str, Any]:
    """The embeddings of some images of some classes, in two dimensions."""
    drawn = draw_map(_by_class(recorded), recogniser.vectors, recorded.images.__getitem__)
    if drawn is None:
        return {}
    return {
        "picture": data_uri(drawn.picture, "webp"),
        "classes": drawn.classes,
        "images": drawn.images,
    }
